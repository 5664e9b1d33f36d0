"""What a server and a web page draw with: models, checked requests, and a queue.

::

    with Engine(ModelChoice("shapes")) as engine:
        job = engine.submit(make_request("generate", {"prompt": "a red circle"}, seed=1))
        picture = job.result()[0]

Neither HTTP nor a page is known here.
"""

from .engine import Engine
from .jobs import Cancelled, Job, QueueFull, ShuttingDown, TimedOut
from .models import Catalog, ModelChoice
from .requests import TASKS, DrawRequest, Limits, call_arguments_of, make_request, request_schema

__all__ = [
    "TASKS",
    "Cancelled",
    "Catalog",
    "DrawRequest",
    "Engine",
    "Job",
    "Limits",
    "ModelChoice",
    "QueueFull",
    "ShuttingDown",
    "TimedOut",
    "call_arguments_of",
    "make_request",
    "request_schema",
]
