"""Serve pictures over HTTP: OpenAI's images API and A1111's, for clients that speak one of them.

Needs `pip install "ppsd3[server]"`. SIGHUP reloads the keys and the model; SIGTERM finishes what was accepted.
"""

from ..utils.errors import InputError
from .options import add_model_options


def add_arguments(parser):
    add_model_options(parser)
    parser.add_argument("--models", metavar="DIR", help="directory below which further models may be asked for by name")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address; another than this one needs keys (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--key-file", metavar="FILE", help="the API keys that are asked for, as hashes")
    parser.add_argument("--make-key", metavar="NAME", help="add a key to --key-file, print it, and end")
    parser.add_argument("--admin", action="store_true", help="with --make-key: it may change everybody's model")
    parser.add_argument("--priority", type=int, default=0, help="with --make-key: higher ones are drawn first")
    parser.add_argument("--max-side", type=int, metavar="PIXELS", help="of a picture (default: 2048)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="of a picture (default: 100)")
    parser.add_argument("--max-pictures", type=int, metavar="N", help="of a request (default: 10)")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="of a request, waiting included (default: 600)")
    parser.add_argument("--max-waiting", type=int, metavar="N", help="pictures in the queue (default: 64)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="calls that run at once (default: 1)")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="pictures that one call draws; they differ by rounding"
    )
    parser.add_argument(
        "--grace", type=float, default=30, metavar="S", help="seconds to finish at the end (default: 30)"
    )
    parser.add_argument("--log-prompts", action="store_true", help="write prompts into the log, too")


def run(arguments):
    from ..serving import Catalog, Engine, Limits, ModelChoice, keys
    from ..serving.server import check_address, check_packages, serve
    from ..serving.service import Service

    asked = {"side": "max_side", "steps": "max_steps", "pictures": "max_pictures", "seconds": "max_seconds"}
    given = {name: getattr(arguments, option) for name, option in asked.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if any(value <= 0 for value in given.values()):
        raise InputError("Each --max is more than 0.")
    if arguments.make_key is not None:
        return _make_key(arguments, keys, given)
    if arguments.admin or arguments.priority:
        raise InputError("--admin and --priority go with --make-key. Leave them out.")
    check_packages()
    check_address(arguments.host, arguments.key_file)
    choice, waiting = ModelChoice.of(arguments), 64 if arguments.max_waiting is None else arguments.max_waiting
    engine = Engine(choice, Limits(**given), waiting, arguments.at_once, arguments.batch)
    service = Service(engine, Catalog(choice, arguments.models), arguments.key_file, arguments.log_prompts)
    try:
        serve(service, arguments.host, arguments.port, arguments.grace)
    finally:
        engine.close()


def _make_key(arguments, keys, limits):
    if arguments.key_file is None:
        raise InputError("--make-key adds a key to a file. Name it by --key-file.")
    settings = {"priority": arguments.priority, "admin": arguments.admin, "waiting": arguments.max_waiting}
    print(keys.make_key(arguments.key_file, arguments.make_key, limits=limits, **settings))
