"""What stands between the network and the routes: limits on bodies, headers and time. ASGI, without FastAPI."""

from __future__ import annotations

import asyncio
from typing import Any

from .service import HTTPError

HEADER_SECONDS = 10.0  # until the headers of a request are there
BODY_SECONDS = 60.0  # until its body is
MOST_HEADER_BYTES = 16 << 10
_CLOSE = {"Connection": "close"}  # what is left of the body is not read


class BodyGuard:
    """ASGI middleware: refuses bodies that are larger than ``most_bytes`` (413) or slower than ``seconds`` (408), by an
    HTTPError."""

    def __init__(self, app: Any, most_bytes: int, seconds: float):
        self.app, self.most_bytes, self.seconds = app, most_bytes, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        loop = asyncio.get_running_loop()
        deadline, size, over = loop.time() + self.seconds, 0, False

        async def guarded():
            nonlocal size, over
            if over:  # what comes now is that the client has left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - loop.time())
            except asyncio.TimeoutError:
                raise HTTPError(408, f"The body took longer than {self.seconds:g} seconds.", headers=_CLOSE) from None
            size += len(message.get("body", b""))
            over = not message.get("more_body", False)
            self._check(size)
            return message

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self._check(int(declared) if declared.isdigit() and len(declared) < 19 else self.most_bytes + 1)
        await self.app(scope, guarded, send)

    def _check(self, size):
        if size > self.most_bytes:
            raise HTTPError(413, f"The body is larger than {self.most_bytes:,} bytes.", headers=_CLOSE)


def guarded_protocol(seconds: float = HEADER_SECONDS) -> Any:
    """uvicorn's protocol on h11, which closes a connection whose headers are not there after ``seconds``: uvicorn waits
    for them forever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Guarded(H11Protocol):
        timer: Any = None

        def connection_made(self, transport):  # type: ignore[no-untyped-def]
            super().connection_made(transport)
            self.timer = self.loop.call_later(seconds, transport.close)

        def data_received(self, data):  # type: ignore[no-untyped-def]
            super().data_received(data)
            served = self.cycle is not None and not self.cycle.response_complete
            if served and self.timer is not None:
                self.timer.cancel()
                self.timer = None
            elif not served and self.timer is None:
                self.timer = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc):  # type: ignore[no-untyped-def]
            if self.timer is not None:
                self.timer.cancel()
            super().connection_lost(exc)

    return Guarded
