"""What stands between the network and the app: only the app's own addresses, small bodies, one origin, a password."""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

#: All that gradio adds beside these (files, proxies, uploads, its own pages) is closed.
_OPEN = {
    "/gradio_api/queue/join": ("POST",),
    "/gradio_api/queue/data": ("GET",),
    "/gradio_api/startup-events": ("GET",),
}
#: Asked by gradio itself when it starts; does nothing afterwards.
_WITHOUT_PASSWORD = frozenset({"/gradio_api/startup-events"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
#: Body of a question; uploads have their own limit.
_MAX_JSON = 1 << 20
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors {frames}",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        host: that the app listens on; on loopback, requests for other hosts are refused (DNS rebinding).
        user, password: of HTTP Basic authentication; None asks nobody.
        max_upload: bytes of one file.
        framed: may be shown inside another site, as Hugging Face Spaces do.
    """

    def __init__(
        self, app: App, *, host: str, user: str, password: str | None, max_upload: int, framed: bool = False
    ) -> None:
        self.app = app
        self.is_local = host in ("127.0.0.1", "localhost", "::1")
        self.max_upload = max_upload
        self._secret = None if password is None else base64.b64encode(f"{user}:{password}".encode())
        frames = "https://huggingface.co" if framed else "'none'"
        self._headers = [(name.encode(), text.format(frames=frames).encode()) for name, text in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:  # a socket that nothing here needs
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name for name, _ in self._headers}
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in own]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        if (refusal := self._refusal(scope)) is not None:
            await _respond(sending, *refusal)
            return
        try:
            await self.app(scope, self._limited(scope, receive), sending)
        except _TooLarge:
            if not started:
                await _respond(sending, 413, "That file is too large.")
        except Exception:
            logger.exception("%s %s", scope["method"], scope["path"])
            if not started:
                await _respond(sending, 500, "That did not work; the app's log says why.")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for a request that is not let through."""
        path, method = scope["path"], scope["method"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self.is_local and host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
            return 421, "This app answers on its own computer only."
        if not _is_open(path, method) or "\0" in path or "\\" in path:
            return 404, "There is nothing here."
        if method == "POST" and (reason := self._post_refusal(headers, host)) is not None:
            return reason
        if self._secret is not None and path not in _WITHOUT_PASSWORD:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"basic" or not secrets.compare_digest(given.strip(), self._secret):
                return 401, "CompositionRequest are the user and the password."
        return None

    def _post_refusal(self, headers: dict[bytes, bytes], host: str) -> tuple[int, str] | None:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            return 403, "Only the app's own page may ask this."
        # No form of another site can send these types without asking first.
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind not in (b"application/json", b"application/octet-stream"):
            return 415, "CompositionRequest is JSON, or a file as application/octet-stream."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limit(kind):
            return 413, "That file is too large."
        return None

    def _limit(self, kind: bytes) -> int:
        return _MAX_JSON if kind == b"application/json" else self.max_upload

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Counts what arrives: a chunked body says no length."""
        kind = next((value for name, value in scope["headers"] if name.lower() == b"content-type"), b"")
        most, seen = self._limit(kind.split(b";")[0].strip().lower()), 0

        async def receiving() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _TooLarge
            return message

        return receiving


class _TooLarge(Exception):
    """A body beyond the limit."""


def _is_open(path: str, method: str) -> bool:
    if path in _OPEN:
        return method in _OPEN[path]
    if path.startswith("/api/"):
        return method in ("GET", "POST")
    return method in ("GET", "HEAD") and (path == "/" or path.startswith("/page/"))


async def _respond(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="partcraft", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
