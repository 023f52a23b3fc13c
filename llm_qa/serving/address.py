"""The address that a server listens at, and running it there."""

from __future__ import annotations

import signal
import socket
from typing import Any

from llm_qa.console import UserError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def check_port(port: int) -> None:
    """UserError for a number that is not a port."""
    if port > 65535:
        raise UserError(f"--port {port} is not a port: use a number up to 65535.")


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket of this address that does not listen yet; UserError where the address cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port} cannot be listened at ({error}): choose another.") from None
    return bound


def url(host: str, port: int) -> str:
    """The address as a browser takes it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(app: Any, bound: socket.socket, **settings: Any) -> None:
    """Serve an ASGI app at a bound socket by uvicorn with these settings of it, until SIGTERM or Ctrl-C."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, ws="none", log_level="warning", **settings))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises its signals again when all is answered
        signal.signal(number, lambda *_: None)
    server.run(sockets=[bound])
