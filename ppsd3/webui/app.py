"""The page as a web application that serves itself, its uploads and the output directory, and nothing else."""

from __future__ import annotations

import base64
import hmac
import os
import re
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..utils.errors import InputError
from ..utils.json_files import parse_json
from .drawing import Studio
from .page import Page
from .wording import LANGUAGES

MOST_UPLOAD = 20 * 1024 * 1024  # bytes of one file
_MOST_BODY = MOST_UPLOAD + (1 << 20)  # of one request: a file and what surrounds it

# Everything comes from the page's own address; Gradio compiles templates, and shows data: and blob: pictures.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_FILE = re.compile(r"/file[=/](.*)", re.DOTALL)
_LOCAL = ("127.0.0.1", "localhost", "[::1]")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class Guard:
    """ASGI middleware: refuses strangers, other sites, large bodies, and files outside of ``directories``.

    Args:
        app: what is guarded.
        directories: whose files may be served, links followed.
        password: asked for by the browser (the user's name is not looked at); None for none.
        hosts: names by which this machine may be called; None for any.
    """

    def __init__(
        self, app: Any, directories: tuple[str, ...], password: str | None = None, hosts: tuple[str, ...] | None = None
    ) -> None:
        self.app, self.hosts = app, hosts
        self.directories = tuple(os.path.realpath(directory) for directory in directories)
        self._password = None if password is None else password.encode()

    async def __call__(self, scope: Any, receive: _Receive, send: _Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        received = 0

        async def limited() -> _Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _MOST_BODY:
                return {"type": "http.disconnect"}
            return message

        passed_on = limited
        if not _header(scope, b"content-type").startswith("multipart/form-data"):
            body = await _read(limited)
            if body is None:
                return
            if not self._names_own_files(body):
                await _answer(send, 400, "This body is not one that the page sends.")
                return
            passed_on = _replayed(body, limited)

        async def with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self.app(scope, passed_on, with_headers)

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        """(status, text), or None if the request may pass."""
        host = _header(scope, b"host")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return 403, "This page is for the machine that it runs on."
        origin = _header(scope, b"origin")
        if origin and urllib.parse.urlsplit(origin).netloc != host:
            return 403, "Another site may not use this page."
        if self._password is not None and not self._is_known(_header(scope, b"authorization")):
            return 401, "A password is needed."
        length = _header(scope, b"content-length") or "0"
        if not length.isdigit():
            return 400, "The length of the body is no number."
        if int(length[:20]) > _MOST_BODY:
            return 413, f"A file may have {MOST_UPLOAD:,} bytes."
        found = _FILE.search(scope["path"])
        if found and not self._may_be_read(found.group(1)):
            return 403, "This file is not served."
        return None

    def _is_known(self, header: str) -> bool:
        kind, _, encoded = header.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except ValueError:
            given = b""
        assert self._password is not None
        return hmac.compare_digest(given, self._password) and kind.lower() == "basic"

    def _names_own_files(self, body: bytes) -> bool:
        """Whether a body in JSON names files that may be served, and no other ones. Gradio does not look at them in a
        page that another application mounts, and copies whatever file an event names to where it serves it from."""
        try:
            left = [parse_json(body, "the body", InputError)] if body else []
        except InputError:
            return False
        while left:
            value = left.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path and not (isinstance(path, str) and os.path.isabs(path) and self._may_be_read(path)):
                    return False
                left += value.values()
            elif isinstance(value, list):
                left += value
        return True

    def _may_be_read(self, path: str) -> bool:
        if "\0" in path:
            return False
        real = os.path.realpath(path if path.startswith("/") or os.path.isabs(path) else "/" + path)
        return any(os.path.commonpath([real, d]) == d for d in self.directories if _same_drive(real, d))


def _same_drive(a: str, b: str) -> bool:
    return os.path.splitdrive(a)[0] == os.path.splitdrive(b)[0]


def _header(scope: Any, name: bytes) -> str:
    """The first header of this name, which Starlette takes as well; "" without one."""
    return next((value for key, value in scope["headers"] if key.lower() == name), b"").decode("latin-1")


async def _read(receive: _Receive) -> bytes | None:
    """The whole body; None if the client leaves."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: _Receive) -> _Receive:
    """``receive`` for whoever comes next, to whom the body that was read comes again."""
    left = [body]

    async def replayed() -> _Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replayed


def _host_name(host: str) -> str:
    return host if host.endswith("]") or ":" not in host else host.rpartition(":")[0]


async def _answer(send: _Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="ppsd3", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def make_app(studio: Studio, uploads: str, password: str | None = None, is_local: bool = True) -> Any:
    """The ASGI application: the page in each language at ``/en/`` and ``/zh/``, and ``/``, which chooses one.

    Args:
        studio: draws.
        uploads: directory for uploads and what Gradio keeps, of :func:`private_uploads`.
        password: that a browser has to know; None for none.
        is_local: whether the machine may be called by its own names only.

    Raises:
        InputError: Gradio is not installed.
    """
    gradio = import_gradio()
    from fastapi import FastAPI, Request
    from fastapi.responses import RedirectResponse, Response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def choose(request: Any) -> Any:
        wanted = request.headers.get("accept-language", "")
        first = next((word[:2] for word in re.split(r"[,;\s]+", wanted.lower()) if word[:2] in LANGUAGES), "en")
        return RedirectResponse(f"{first}/")

    choose.__annotations__["request"] = Request
    app.get("/")(choose)
    app.get("/favicon.ico")(lambda: Response(_ICON, media_type="image/svg+xml"))
    for language in LANGUAGES:
        blocks = Page(studio, language).blocks
        app = gradio.mount_gradio_app(
            app,
            blocks,
            path=f"/{language}",
            allowed_paths=[studio.output],
            max_file_size=MOST_UPLOAD,
            show_error=False,
            footer_links=[],
            theme=_theme(gradio),
            css=_CSS,
            head=_head(language),
            ssr_mode=False,
            mcp_server=False,
        )
    return Guard(app, (studio.output, uploads), password, _LOCAL if is_local else None)


def private_uploads() -> tempfile.TemporaryDirectory[str]:
    """A directory for uploads, where Gradio will put them if it is not imported yet; gone when it is cleaned up."""
    directory = tempfile.TemporaryDirectory(prefix="ppsd3-webui-")
    os.environ["GRADIO_TEMP_DIR"] = directory.name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return directory


def import_gradio() -> Any:
    """The library. Raises an InputError that says how to install it."""
    try:
        import gradio
    except ImportError as error:
        raise InputError(
            "The page needs Gradio 6, which has no release for Python 3.9. Install it on Python 3.10 or later with "
            'pip install "ppsd3[webui]".'
        ) from error
    return gradio


def _theme(gradio: Any) -> Any:
    """Gradio's default one with fonts of the system, which nobody has to fetch, and colours with enough contrast."""
    return gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_cancel_background_fill="*neutral_200",
        button_cancel_text_color="*neutral_900",
        button_cancel_background_fill_dark="*neutral_700",
        button_cancel_text_color_dark="white",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500",
    )


def _head(language: str) -> str:
    """What the page runs first: its language, and light or dark as it was chosen."""
    return f"""<script>
for (const name of ["language", "languages"])
    Object.defineProperty(navigator, name, {{ get: () => name === "language" ? "{language}" : ["{language}"] }});
document.documentElement.lang = "{language}";
// Gradio's empty frames have a label and no role, which no screen reader expects.
new MutationObserver(() => document.querySelectorAll("div.empty[aria-label]:not([role])").forEach(
    (frame) => frame.setAttribute("role", "img"))).observe(document, {{ childList: true, subtree: true }});
const theme = localStorage.getItem("ppsd3-theme");
if (theme) addEventListener("DOMContentLoaded", () => {{
    const set = () => document.body.classList.toggle("dark", theme === "dark");
    set(); setTimeout(set, 300);
}});
</script>"""


_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#1d4ed8"/>'
    '<circle cx="8" cy="8" r="4" fill="#fff"/></svg>'
)

_CSS = """
header.top { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; align-items: baseline; justify-content: space-between; }
header.top h1 { font-size: 1.4rem; margin: 0; }
header.top small { font-size: 0.9rem; font-weight: normal; }
header.top nav a { padding: 0.25rem 0.5rem; text-decoration: underline; color: inherit; }
header.top nav a[aria-current] { font-weight: bold; text-decoration: none; }
#theme { align-self: center; }
.numbers > * { align-self: end; }
.status p { margin: 0 0 0.25rem; }
.status progress { width: 100%; height: 0.75rem; }
.status .previews { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.status .previews img { width: 12rem; max-width: 100%; }
.status.failed { border-left: 4px solid #b91c1c; padding: 0.5rem 0.75rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(var(--columns), minmax(4rem, 16rem)); gap: 0.5rem; }
.figures figure { margin: 0; }
.figures img { width: 100%; }
.figures figcaption { white-space: pre-line; font-size: 0.85rem; }
.gradio-container { padding: 0.5rem !important; }
.wrap .or { color: inherit !important; }
:focus-visible { outline: 2px solid #2563eb !important; outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""
