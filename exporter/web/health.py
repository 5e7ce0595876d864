"""`tgi-probe health`: asks the daemon on this machine. For container engines; Kubernetes uses HTTP.

A daemon runs on when its configuration file is broken or deleted. So only its address and TLS are read from there, and
neither has to be right: where one of HTTP and HTTPS is not answered, the other is tried.
"""

import http.client
import ssl
from pathlib import Path

from exporter.config.daemon_address import daemon_address
from exporter.config.errors import SettingsError
from exporter.config.notation import ANY_INTERFACE, split_listen_address
from exporter.config.yaml_file import read_yaml
from exporter.observation import legible

# Also what a port with TLS answers to plain HTTP.
BAD_REQUEST = 400
# Characters of what was answered: another program may have the port.
LONGEST_TEXT = 1000


def healthy(config: Path | None, timeout: float = 4.0) -> str | None:
    """None when `/-/healthy` answers 200, else why not, in one line. `timeout` in seconds."""
    address = daemon_address(config)
    host, port = split_listen_address(address.listen_address)
    if host in ANY_INTERFACE:
        host = "localhost"
    troubles = []
    for tls in (True, False) if _asks_for_tls(address.web_file) else (False, True):
        try:
            status, text = _ask(host, port, tls, timeout)
        except TimeoutError:
            return f"no answer at {host}:{port} within {timeout:g} s"
        except (OSError, http.client.HTTPException) as error:
            why = legible(str(getattr(error, "strerror", None) or error), LONGEST_TEXT)
            troubles.append(f"no answer at {host}:{port} ({why})")
            continue
        if status == 200:
            return None
        troubles.append(f"{status}: {legible(text, LONGEST_TEXT)}")
        if status != BAD_REQUEST:
            return troubles[-1]
    return "; ".join(dict.fromkeys(troubles))


def _asks_for_tls(web_file: Path | None) -> bool:
    try:
        return web_file is not None and "tls_server_config" in read_yaml(web_file)
    except SettingsError:
        return False


def _ask(host: str, port: int, tls: bool, timeout: float) -> tuple[int, str]:
    """The status of `/-/healthy` and the beginning of its text. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    if tls:
        # The certificate names the host that others use, not this address.
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=anyone)
    try:
        connection.request("GET", "/-/healthy")
        answer = connection.getresponse()
        return answer.status, answer.read(1000).decode(errors="replace").strip()
    finally:
        connection.close()
