"""Listening on a port, and uvicorn on it."""

import contextlib
import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from ..errors import UserError

_MAX_CONNECTIONS = 100  # at a time; a browser opens up to 6
_SECONDS_TO_END = 5  # for running requests after Ctrl-C


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open a listening TCP socket; connections wait in it until a server takes them.

    Args:
        host: an IPv4 or IPv6 address, or a name that resolves to an IPv4 address.
        port: 0 to 65535; 0 takes a free one.

    Raises:
        UserError: if the port is taken or not allowed, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on port {port} of {host}: {reason.lower()}; "
            "choose another with --port (0 takes a free one) or --host"
        ) from error


def page_url(connection: socket.socket) -> str:
    """The address to type into a browser."""
    host, port = connection.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Tells when it is ready."""

    on_ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()


def build_server(
    app: ASGIApp, connection: socket.socket, on_ready: Callable[[str], None]
) -> uvicorn.Server:
    """Make a server; its `run(sockets=[connection])` serves until it gets a signal.

    Args:
        app: what answers.
        connection: from `listen`.
        on_ready: called with the page's address when the server answers there.
    """
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,  # logging is the program's
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
    )
    server.on_ready = lambda: on_ready(page_url(connection))
    return server


def serve(app: ASGIApp, connection: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C, which lets running requests end; see `build_server`."""
    with contextlib.suppress(KeyboardInterrupt):  # sent again by uvicorn, after a clean end
        build_server(app, connection, on_ready).run(sockets=[connection])
