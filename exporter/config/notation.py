"""How values are written in the configuration: durations, addresses, names, lists. Pure.

The functions raise PydanticCustomError, whose message says what to write instead. Where the message begins with the
key (`address: must be …`), the error's type is one of `errors.NAMES_ITS_KEY`.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from ipaddress import ip_address
from urllib.parse import SplitResult, quote, urlsplit

from pydantic_core import PydanticCustomError

DURATION = re.compile(
    r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII
)
LONGEST_SECONDS = 366 * 86400.0
DURATION_UNITS = (7 * 86400.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)


def parse_duration(text: object) -> float:
    """Seconds from a duration as Prometheus writes it: `250ms`, `15s`, `1m30s`, `0`. Errors: PydanticCustomError."""
    if isinstance(text, (int, float)) and not isinstance(text, bool) and text == 0:
        return 0.0
    match = DURATION.fullmatch(text) if isinstance(text, str) and text else None
    if text == "0":
        return 0.0
    if match is None:
        raise PydanticCustomError("duration", "must be a duration with a unit, such as 250ms, 15s or 2m")
    if sum(len(number) for number in match.groups(default="")) > 18:
        raise PydanticCustomError("duration", "must be at most 366d")
    # Rounded, because 200 x 0.001 is not the float 0.2, and an SLO threshold must be the very edge of its bucket.
    seconds = round(sum(float(n) * unit for n, unit in zip(match.groups(), DURATION_UNITS, strict=True) if n), 9)
    if seconds > LONGEST_SECONDS:
        raise PydanticCustomError("duration", "must be at most 366d")
    return seconds


def write_duration(seconds: float) -> str:
    """The text that `parse_duration` reads as exactly these seconds: `1m30s`, `250ms`, `0s`."""
    exact = Decimal(repr(seconds))
    if exact % 1:
        return f"{(exact * 1000).normalize():f}ms" if exact < 1 else f"{exact:f}s"
    left, text = int(exact), ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def listed(value: object) -> object:
    """A list from what the environment can hold: `1,2,4`, `[1, 2]`, `1`, or items by number (nested variables)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]")
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, Mapping) and value and all(str(key).isdigit() for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return value


def no_boolean(value: object) -> object:
    """Refuses true and false, which Python would take for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


def is_unicode(text: str) -> bool:
    """Whether it has no half surrogate pairs, which no page, log or JSON could be written with."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# The kernel's limit for a socket's address, less the closing zero.
SOCKET_PATH_BYTES = 107
ADDRESS = "address: must be unix:///absolute/path of the socket, or host:port"
HOST = re.compile(r"[A-Za-z0-9._-]+")
LONGEST_HOST = 253
# With one of these characters, IDNA 2003 and IDNA 2008 give different hosts.
AMBIGUOUS = re.compile("[\u00df\u03c2\u200c\u200d]")
HOST_LABELS = "{key}: must be a host name whose parts between dots have 1 to 63 characters"
HOST_CHARACTERS = (
    "{key}: must be a host name as DNS has it, of letters, digits, dots and hyphens (international ones: xn--…)"
)


def ascii_host(name: str) -> str:
    """An international host name as DNS has it (xn--…). Unchanged where there is no such form, see `check_host`."""
    if name.isascii() or len(name) > LONGEST_HOST or AMBIGUOUS.search(name.lower()):
        return name
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def ascii_address(text: str) -> str:
    """An address as it is sent: the host as DNS has it, the path of a URL with percent-encoding.

    Unchanged where it is ASCII already, or wrong: `check_address` and `split_url` raise the errors.
    """
    if text.startswith("unix:"):
        return text
    if not text.startswith(("http://", "https://")):
        host, colon, port = text.rpartition(":")
        return ascii_host(host) + colon + port
    try:
        parts = urlsplit(text)
        port_text = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return text
    path = quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", parts.path), safe="/:@!$&'()*+,;=~%")
    if not text.isprintable() or parts.query or parts.fragment or "@" in parts.netloc:
        return text
    if parts.netloc.isascii():
        return text if path == parts.path else f"{parts.scheme}://{parts.netloc}{path}"
    return f"{parts.scheme}://{ascii_host(parts.hostname or '')}{port_text}{path}"


def check_host(name: str, key: str) -> None:
    """Errors: PydanticCustomError, which names `key`."""
    if not HOST.fullmatch(name) and not _is_ip_address(name):
        raise PydanticCustomError("address", HOST_CHARACTERS, {"key": key})
    try:
        name.encode("idna")
    except UnicodeError:
        raise PydanticCustomError("address", HOST_LABELS, {"key": key}) from None


def _is_ip_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def check_address(address: str) -> None:
    """A gRPC address: `unix:///path` (absolute), `host:port` or `[v6 address]:port`. Errors: PydanticCustomError."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix://").removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/") or not path.isprintable():
            raise PydanticCustomError("address", ADDRESS)
        if len(path.encode()) > SOCKET_PATH_BYTES:
            raise PydanticCustomError("address", f"address: must be a path of at most {SOCKET_PATH_BYTES} bytes")
        return
    if address.startswith(("http://", "https://")):
        # Its type keeps the value from being repeated: a URL may hold a password.
        raise PydanticCustomError("key", "address: a URL needs kind: http; set it, or write unix:///path or host:port")
    host, _, port = address.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else None
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 65536 or not host.strip():
        raise PydanticCustomError("address", ADDRESS)
    if (inner is not None and not _is_ip_address(inner)) or (inner is None and re.search(r"[\s:/\[\]]", host)):
        raise PydanticCustomError("address", ADDRESS)
    check_host(inner or host, "address")


LOOPBACK_NAMES = ("localhost", "ip6-localhost", "ip6-loopback", "localhost.localdomain")
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "0.0.0.0", "::")  # a client that connects to "any address" reaches its own host


def canonical_address(address: str) -> str:
    """One text for all ways to write a valid gRPC address, as far as known without DNS: `unix:/path` or `host:port`."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix://").removeprefix("unix:")
        return "unix:/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    host, _, port = address.rpartition(":")
    return f"{canonical_host(host)}:{int(port)}"


def canonical_host(host: str) -> str:
    """`localhost` for all names and addresses of this machine's loopback, an IP address in its shortest form."""
    host = host.strip("[]").lower().rstrip(".")
    if host in LOOPBACK_NAMES or host.endswith(".localhost"):
        return "localhost"
    number = _ipv4(host)
    try:
        found = ip_address(host if number is None else number)
    except ValueError:
        return host
    short = str(getattr(found, "ipv4_mapped", None) or found)
    return "localhost" if short in LOOPBACK_HOSTS else short


def _ipv4(host: str) -> int | None:
    """An IPv4 address as resolvers read it: one to four numbers, decimal, octal (0…) or hexadecimal (0x…). The last
    number fills the remaining bytes.
    """
    numbers = []
    for part in host.split("."):
        if not re.fullmatch(r"0x[0-9a-f]*|0[0-7]*|[1-9][0-9]*", part, re.ASCII):
            return None
        base = 16 if part.startswith("0x") else 8 if part.startswith("0") else 10
        numbers.append(int(part.removeprefix("0x") or "0", base))
    *first, last = numbers
    if len(first) > 3 or any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        return None
    return sum(number << 8 * (3 - place) for place, number in enumerate(first)) + last


# The hosts of a listen address that mean every interface.
ANY_INTERFACE = ("", "0.0.0.0", "::")


def split_listen_address(text: str) -> tuple[str, int]:
    """Host and port of `:9477`, `127.0.0.1:9477`, `[::1]:9477`. Errors: PydanticCustomError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise PydanticCustomError("listen_address", "listen_address: must be host:port or :port, such as :9477")
    return host.strip("[]"), int(port)


def counted(number: int, noun: str, many: str = "") -> str:
    """`1 target`, `2 targets`; `many` where that is not made with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {many or f'{noun}s'}"


RATE_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_rate(text: object) -> float:
    """Requests per second from `2/s`, `30/m`, `0.5/s`. Errors: PydanticCustomError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)/([smh])", text, re.ASCII) if isinstance(text, str) else None
    if match is None or float(match[1]) <= 0:
        raise PydanticCustomError("rate", "must be requests per time, above 0, such as 2/s or 30/m")
    return float(match[1]) / RATE_UNITS[match[2]]


def write_rate(per_second: float) -> str:
    """The shortest text that `parse_rate` reads as exactly this rate: `2/s`, `20/m`."""
    forms = [f"{Decimal(repr(per_second * size)).normalize():f}/{unit}" for unit, size in RATE_UNITS.items()]
    return min((form for form in forms if parse_rate(form) == per_second), key=len)


def split_url(url: str, key: str = "address") -> SplitResult:
    """An absolute http or https URL, whose port may be left out. Errors: PydanticCustomError, which names `key`."""
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        parts, port_fits = SplitResult("", "", "", "", ""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_fits or parts.query or parts.fragment:
        raise PydanticCustomError("address", "{key}: must be http(s)://host:port, with a path or without", {"key": key})
    if parts.username is not None or parts.password is not None:
        # Its own type, so that the value, which holds a secret, is not repeated.
        raise PydanticCustomError(
            "key", "{key}: must not hold a password; use bearer_token_env or bearer_token_file", {"key": key}
        )
    if not url.isprintable():
        raise PydanticCustomError("address", "{key}: must not hold line ends or other control characters", {"key": key})
    check_host(parts.hostname, key)
    return parts


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine's loopback."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
