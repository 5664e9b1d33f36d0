"""Open a page in the browser to draw pictures: on this machine alone, or with a password for others."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import webbrowser
from concurrent.futures import Future, wait
from typing import Any

from ..utils.errors import InputError
from .options import DEFAULT_MODEL, DTYPES

_PASSWORD = "PPSD3_PASSWORD"
_LOCAL = "127.0.0.1"
_SOON = 5  # seconds in which most models are loaded, or known to be none


def add_arguments(parser: Any) -> None:
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--port", type=int, default=7860, help="0 for any that is free (default: %(default)s)")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        help=f"let other machines in, e.g. 0.0.0.0; needs a password, in the environment variable {_PASSWORD} or by "
        f"--password-file (default: {_LOCAL}, this machine alone)",
    )
    parser.add_argument("--password-file", metavar="FILE", help="its first line is the password that browsers ask for")
    parser.add_argument("--output", metavar="DIR", default="outputs", help="where pictures go (default: %(default)s/)")
    parser.add_argument("--models", metavar="DIR", help="checkpoints, ControlNets and LoRAs that the page offers")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="the one to begin with: directory, file or hub id (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the networks (default: %(default)s)")
    parser.add_argument("--device", help="cpu, gpu or gpu:N (default: what Paddle takes)")
    parser.add_argument(
        "--most-waiting", type=int, default=64, metavar="N", help="pictures in the queue (default: %(default)s)"
    )


def run(arguments: Any) -> None:
    password = _password(arguments)
    if arguments.listen is not None and password is None:
        raise InputError(
            f"--listen needs a password. Set the environment variable {_PASSWORD}, or name a file by --password-file."
        )
    if arguments.models is not None and not os.path.isdir(arguments.models):
        raise InputError(f"--models {arguments.models} is no directory. Name one that holds checkpoints.")
    from ..serving.server import listen
    from ..webui.app import import_gradio, make_app, private_uploads

    with private_uploads() as uploads, listen(arguments.listen or _LOCAL, arguments.port, "--listen") as listening:
        import_gradio()
        import uvicorn

        from ..serving import Catalog, Engine, ModelChoice
        from ..serving.guard import guarded_protocol
        from ..webui.drawing import Studio
        from ..webui.pictures import accept_only_pictures

        accept_only_pictures()
        choice = ModelChoice(arguments.model, dtype=arguments.dtype, device=arguments.device)
        engine = Engine(choice, most_waiting=arguments.most_waiting)
        studio = Studio(engine, Catalog(choice, arguments.models), arguments.output)
        app = make_app(studio, uploads, password, is_local=arguments.listen is None)
        config = uvicorn.Config(
            app,
            http=guarded_protocol(),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,  # a page that is open would hold the process
        )
        server = uvicorn.Server(config)
        loaded = engine.start()
        loaded.add_done_callback(lambda done: setattr(server, "should_exit", done.exception() is not None))
        _announce(server, loaded, listening, arguments.open)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # after uvicorn's, to clean up
        try:
            server.run([listening])
        finally:
            engine.close()
        if loaded.done():
            loaded.result()  # why the page ended, if it was for want of a model


def _password(arguments: Any) -> str | None:
    if arguments.password_file is None:
        return os.environ.get(_PASSWORD) or None
    try:
        with open(arguments.password_file, encoding="utf-8") as file:
            password = file.readline(1000).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--password-file {arguments.password_file}: {error}. Name a text file.") from error
    if not password:
        raise InputError(
            f"--password-file {arguments.password_file} has an empty first line. Write the password there."
        )
    return password


def _announce(server: Any, loaded: Future[None], listening: Any, opens: bool) -> None:
    """Prints the address when the server has begun, and opens it in the browser; not if there is no such model."""
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def announce() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.05)
        wait([loaded], _SOON)
        if server.started and not server.should_exit:
            print(address, flush=True)
            if opens:
                webbrowser.open(address)

    threading.Thread(target=announce, name="ppsd3-announce", daemon=True).start()
