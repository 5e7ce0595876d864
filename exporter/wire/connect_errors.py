"""Why a connection could not be opened, as the system or gRPC says it, and what to look at. Pure."""

import re

_UNRESOLVED = re.compile(r"errors resolving .*|DNS resolution failed .*")
UNKNOWN_NAME = "the host's name is not known"
UNKNOWN_HINT = "is it spelt right, and known in this network?"
GONE = "nobody listens on this socket: is its server still starting, or gone and the file left behind?"
NOBODY = "nothing listens there: is the server up, and the port right?"
MORE_FILES = "raise the limit of open files (ulimit -n, LimitNOFILE= of systemd), or probe fewer targets"
HINTS = {
    "Too many open files": MORE_FILES,
    "Connection refused": NOBODY,
    UNKNOWN_NAME: UNKNOWN_HINT,
    "Name or service not known": UNKNOWN_HINT,
    "No address associated with hostname": UNKNOWN_HINT,
    "Temporary failure in name resolution": "the name could not be looked up; does DNS work here?",
    "No route to host": "is the address right, and reachable from this network?",
    "Network is unreachable": "is the address right, and reachable from this network?",
    "Connection timed out": "no answer at all: is the address right, and does a firewall let it through?",
}
SOCKET_HINTS = {
    "Too many open files": MORE_FILES,
    "Connection refused": GONE,
    "Permission denied": "only the socket's owner may use it; run tgi-probe as the server's user",
    "No such file or directory": "is the server up, and its directory shared with this container?",
}
# gRPC's words around the system's differ by the kind of address, and with its event engine on or off.
_WRAPPED = re.compile(
    rf"failed to connect to all addresses; last error: .* ({'|'.join(HINTS | SOCKET_HINTS)})(?: \(\d+\))?"
)


def reason(text: str) -> str | None:
    """The system's words without gRPC's around them; None where they are not about connecting."""
    if match := _WRAPPED.fullmatch(text):
        return match[1]
    return UNKNOWN_NAME if _UNRESOLVED.fullmatch(text) else None


def hint(address: str, reason: str) -> str | None:
    """What to look at, by the system's words about connecting to the address; None where that is not known."""
    return (SOCKET_HINTS if address.startswith(("unix:", "/")) else HINTS).get(reason)
