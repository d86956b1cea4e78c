"""Whether anything answers at an address, asked before Ray is, which waits for minutes."""

import socket
from urllib.parse import urlsplit

_CONNECT_S = 5.0
_PORTS = {"http": 80, "https": 443, "ray": 10001}


def check_answers(address: str, usual_port: int) -> None:
    """Fail in seconds where nothing answers.

    Args:
        address: ``host:port``, or a URL.
        usual_port: where neither it nor its scheme says one.

    Raises:
        ConnectionError: nothing does, or it is no address.
    """
    try:
        location = urlsplit(address if "://" in address else f"//{address}")
        port = location.port or _PORTS.get(location.scheme, usual_port)
        socket.create_connection((location.hostname or "", port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(str(error)) from error
