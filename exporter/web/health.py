"""`tgi-probe health`: asks the daemon of the same configuration. For container engines; Kubernetes uses HTTP."""

import http.client
import ssl

from exporter.config.notation import split_listen_address
from exporter.config.settings import Settings
from exporter.config.yaml_file import read_yaml

ANY_INTERFACE = ("", "0.0.0.0", "::")


def healthy(settings: Settings, timeout: float = 4.0) -> str | None:
    """None when `/-/healthy` answers 200, else why not, in one line."""
    host, port = split_listen_address(settings.web.listen_address)
    if host in ANY_INTERFACE:
        host = "localhost"
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    if settings.web.config_file and "tls_server_config" in read_yaml(settings.web.config_file):
        # The certificate names the host that others use, not this address.
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=anyone)
    try:
        connection.request("GET", "/-/healthy")
        answer = connection.getresponse()
        text = answer.read(1000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer at {host}:{port} ({error})"
    finally:
        connection.close()
    return None if answer.status == 200 else f"{answer.status}: {text}"
