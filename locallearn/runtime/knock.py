"""Whether a Ray listens at an address, found out without it: its own client tries for minutes, or waits for ever."""

from __future__ import annotations

import os
import socket

SECONDS = 10.0
SETTINGS = 4
"""The type of the frame with which a server of HTTP/2, and so of gRPC, speaks first."""
TOKEN = "set RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
"""What to do where a Ray asks for one."""
HOST_PORT = "an address is HOST:PORT, or ray://HOST:PORT of a client server"
WRONG = "so it is no Ray, or one that hangs; `ray start` tells the address, which often ends in :6379, and is not that of the dashboard"


def knock(address: str) -> None:
    """OSError where nobody, or no Ray, listens at HOST:PORT; ValueError for what is no address. `auto` Ray looks up itself."""
    place = address.removeprefix("ray://")
    if "://" in place:
        raise ValueError(HOST_PORT)
    host, _, port = place.rpartition(":")
    if place in ("auto", "local"):
        return
    if not host or not port.isdigit():
        raise ValueError(HOST_PORT)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS) as line, line.makefile("rb") as heard:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # there the client speaks first
        try:
            frame = heard.read(9)
        except TimeoutError:
            raise TimeoutError(f"who listens there says nothing, {WRONG}") from None
        if frame[3:4] != bytes([SETTINGS]):
            raise ConnectionError(f"who listens there {'speaks otherwise' if frame else 'hangs up'}, {WRONG}")
