"""The address that a server listens at."""

from __future__ import annotations

import socket

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
