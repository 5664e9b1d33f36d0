"""The HTTP server: a FastAPI application over a service, and uvicorn."""

# No `from __future__ import annotations`: FastAPI reads the types of the routes.
import asyncio
import contextlib
import ipaddress
import math
import signal
import socket
import threading
import time
from typing import Any

from .. import __version__
from ..utils.errors import InputError, PPSD3Error
from . import a1111_api, openai_api
from .guard import MOST_HEADER_BYTES, BodyGuard, guarded_protocol
from .service import LEFT, HTTPError, Service, http_error

MOST_BODY_BYTES = 32 << 20
MOST_CONNECTIONS = 1000
_ANSWER_SECONDS = 10  # for the answers, after the engine has stopped
_QUIET = ("/health", "/ready", "/metrics")  # not logged: machines ask every few seconds
_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def make_app(service: Service, most_body_bytes: int = MOST_BODY_BYTES, body_seconds: float = 60.0) -> Any:
    """The ASGI application. The engine of ``service`` starts and ends with it, unless it runs already.

    Args:
        most_body_bytes: of a request; more is answered by 413.
        body_seconds: that a body may take; more is answered by 408.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
    from starlette.exceptions import HTTPException as StarletteHTTPException

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(title="ppsd3", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    registry = CollectorRegistry()
    registry.register(_EngineMetrics(service.engine))
    seconds = Histogram("ppsd3_request_seconds", "Time of HTTP requests.", ["route", "status"], registry=registry)

    async def on_error(request: Request, error: Exception):
        told = http_error(error)
        return JSONResponse(told.body, told.status, told.headers)

    async def on_http_error(request: Request, error: Any):
        return await on_error(request, HTTPError(error.status_code, str(error.detail), headers=error.headers))

    app.add_exception_handler(PPSD3Error, on_error)
    app.add_exception_handler(StarletteHTTPException, on_http_error)

    @app.get("/health")
    async def health():
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready():
        """Whether a model is loaded and requests are accepted."""
        ready = service.engine.ready
        return JSONResponse({"ready": ready, "waiting": service.engine.waiting}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics():
        """Figures for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    openai_api.add_routes(app, service)
    a1111_api.add_routes(app, service)
    app.add_middleware(BodyGuard, most_bytes=most_body_bytes, seconds=body_seconds)
    app.add_middleware(_Watched, service=service, seconds=seconds, answer=on_error)
    return app


class _Watched:
    """ASGI middleware: measures and logs each request, and answers whatever the routes raise."""

    def __init__(self, app, service, seconds, answer):
        self.app, self.service, self.seconds, self.answer = app, service, seconds, answer

    async def __call__(self, scope, receive, send):
        from starlette.requests import ClientDisconnect

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def sending(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:
            status = status or LEFT
        except Exception as error:  # noqa: BLE001 (whatever it is, the client gets an answer, and the log its kind)
            self.service.log_error(error)
            if not status:
                await (await self.answer(None, error))(scope, receive, sending)
        took = time.monotonic() - began
        route = getattr(scope.get("route"), "path", "other")
        self.seconds.labels(route, status).observe(took)
        if route not in _QUIET:
            self.service.log(
                event="request", method=scope["method"], route=route, status=status, seconds=round(took, 3)
            )


class _EngineMetrics:
    """What the engine counts, as a collector of prometheus_client."""

    def __init__(self, engine):
        self._engine = engine

    def collect(self):
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = dict(self._engine.counts)
        jobs = CounterMetricFamily("ppsd3_jobs", "Jobs, by what became of them.", labels=["state"])
        for state in ("accepted", "refused", "done", "failed", "cancelled"):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        for name, text in (("pictures", "Pictures drawn."), ("steps", "Denoising steps."), ("calls", "Calls.")):
            yield CounterMetricFamily(f"ppsd3_{name}", text, value=counts.get(name, 0))
        yield GaugeMetricFamily("ppsd3_waiting", "Pictures that wait or are drawn.", value=self._engine.waiting)
        yield GaugeMetricFamily("ppsd3_ready", "Whether requests are accepted.", value=float(self._engine.ready))


def check_address(host: str, key_file: Any) -> None:
    """Raises an InputError if others could reach ``host`` without a key."""
    try:
        own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = host == "localhost"
    if not own and key_file is None:
        raise InputError(
            f"--host {host} can be reached by others, and no keys are asked for. Make one by `ppsd3 serve --key-file "
            "FILE --make-key NAME` and serve with --key-file FILE."
        )


def check_packages() -> None:
    """Raises an InputError if the packages of the extra [server] are missing."""
    import importlib.util

    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{missing[0]} is not installed. Install the server: pip install 'ppsd3[server]'.")


def listen(host: str, port: int, option: str = "--host") -> socket.socket:
    """A socket that listens; ``option`` is what errors call the one that names the host.

    Raises:
        InputError: the address is not one of this machine's, the port is taken, or not allowed.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port} is no port. They are from 0, any that is free, to 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise InputError(
            f"Cannot listen on {host}, port {port}: {reason}. Choose others by {option} and --port."
        ) from None


def serve(service: Service, host: str, port: int, grace: float) -> None:
    """Serves until SIGINT or SIGTERM, then gives what was accepted ``grace`` seconds and refuses the rest. SIGHUP
    reloads. Requests that come while the model is loaded wait for it.

    Raises:
        InputError: it cannot listen.
        PPSD3Error: the model cannot be loaded.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None):  # type: ignore[no-untyped-def]
            """What is left after ``grace`` is answered by 503, not cut."""
            closing = asyncio.ensure_future(asyncio.to_thread(service.engine.close, grace))
            await super().shutdown(sockets)
            await closing

    def on_load(loaded):
        if loaded.exception() is None:
            service.log(event="ready", model=service.catalog.name_of(service.engine.choice))
        else:
            server.should_exit = True

    check_address(host, service.key_file)
    if grace < 0:
        raise InputError(f"--grace {grace:g} is less than 0.")
    config = uvicorn.Config(
        make_app(service),
        http=guarded_protocol(),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=math.ceil(grace) + _ANSWER_SECONDS,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )
    server = Server(config)
    with listen(host, port) as listening:
        if hasattr(signal, "SIGHUP"):  # in a thread of its own: a handler may interrupt the owner of a lock
            signal.signal(signal.SIGHUP, lambda number, frame: threading.Thread(target=service.reload).start())
        service.log(event="listening", address=f"http://{host}:{listening.getsockname()[1]}", version=__version__)
        loaded = service.engine.start()
        loaded.add_done_callback(on_load)
        server.run(sockets=[listening])
    if server.should_exit and loaded.done():
        loaded.result()
