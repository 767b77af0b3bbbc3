"""A port in use, told before the server starts and in plain words."""

import errno
import socket

import click

from segdistill.files import SegdistillError


def check_port(host: str, port: int) -> None:
    """Raise unless the port can be listened on.

    Args:
        host: address to listen on, unless ``bentoml serve --host`` or BENTOML_HOST says another.
        port: port, unless ``--port`` or BENTOML_PORT says another.

    Raises:
        SegdistillError: another process has the port.
    """
    command = click.get_current_context(silent=True)
    given = command.params if command else {}
    host, port = given.get("host") or host, given.get("port") or port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server itself: a port that was left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise SegdistillError(
                f"{host}:{port}: this port is in use. Stop what listens there, or take another: "
                f"bentoml serve --port {port + 1}"
            ) from None
