"""API keys: made at random, kept as SHA-256 in a file of JSON lines, compared in constant time."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from typing import Any

from ..utils.errors import InputError
from ..utils.files import atomic_write
from ..utils.images import open_regular
from ..utils.json_files import parse_json_object
from .requests import Limits

_MOST_BYTES = 1 << 20
_PREFIX = "ppsd3-"
_LIMITS = [field.name for field in dataclasses.fields(Limits)]


@dataclasses.dataclass(frozen=True)
class Key:
    """Who asks, and what they may.

    Args:
        name: for logs.
        sha256: of the key, in hexadecimal digits; a key has 256 random bits, so nothing slower is needed.
        priority: of its jobs.
        waiting: pictures of its own that may wait or be drawn; None for as many as the queue holds.
        admin: whether it may change the model that all others get.
        limits: what of the server's limits is lower for it, by name.
    """

    name: str
    sha256: str = ""
    priority: int = 0
    waiting: int | None = None
    admin: bool = False
    limits: dict[str, float] = dataclasses.field(default_factory=dict)

    def of(self, limits: Limits) -> Limits:
        """``limits``, where its own are not lower."""
        own = {name: min(value, getattr(limits, name)) for name, value in self.limits.items()}
        return dataclasses.replace(limits, **own)  # type: ignore[arg-type]


def make_key(path: str, name: str, **settings: Any) -> str:
    """Adds a key to the file at ``path``, which is made if it is missing and which others cannot read.

    Args:
        name: for logs; none that the file has.
        **settings: fields of :class:`Key`.

    Returns:
        The key. Nothing keeps it: only its hash is in the file.

    Raises:
        InputError: the name is taken, or the file is no file of keys.
    """
    keys = read_keys(path) if os.path.exists(path) else []
    if not name or name in [key.name for key in keys]:
        raise InputError(f"{path} has a key called {name!r} already, or that is no name. Choose another one.")
    secret = _PREFIX + secrets.token_urlsafe(32)
    keys.append(Key(name, _hash(secret), **settings))
    with atomic_write(path) as file:
        file.write("".join(json.dumps(dataclasses.asdict(key)) + "\n" for key in keys).encode())
    os.chmod(path, 0o600)
    return secret


def read_keys(path: str) -> list[Key]:
    """The keys in a file.

    Raises:
        InputError: there is no such file, or a line that is no key.
    """
    with open_regular(path, f"--key-file {path}") as file:
        lines = file.read(_MOST_BYTES).splitlines()
    return [_read(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def find_key(keys: list[Key], given: str) -> Key | None:
    """The key that ``given`` is, in a time that does not tell how near it is: each hash is compared whole."""
    hashed, found = _hash(given), None
    for key in keys:
        if hmac.compare_digest(key.sha256, hashed):
            found = key
    return found


def _hash(secret):
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _read(line, source):
    values = parse_json_object(line, source, InputError)
    kinds = {"name": str, "sha256": str, "priority": int, "waiting": (int, type(None)), "admin": bool, "limits": dict}
    wrong = [name for name, value in values.items() if name not in kinds or not isinstance(value, kinds[name])]
    limits = values.get("limits", {})
    wrong += [n for n, v in limits.items() if n not in _LIMITS or not isinstance(v, (int, float))]
    wrong += [name for name, length in (("name", 1), ("sha256", 64)) if len(str(values.get(name, ""))) < length]
    if wrong:
        raise InputError(f"{source}: {wrong[0]!r} is not as `ppsd3 serve --make-key` writes it.")
    return Key(**values)
