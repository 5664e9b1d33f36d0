"""Prompts that are encoded once: their conditions are kept in memory and, if wanted, in files.

A condition belongs to the text, to how it is read, and to the encoders with all that was done to them (weights,
adapters, quantization), so all of it is in its key. With encoders that are loaded on demand, a hit saves the loading.
Each text is encoded by itself: in a batch its last digits would depend on what is beside it, and so on which thread or
call was the first to need it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import numpy as np
import paddle

from ...utils.checking import Range, checks_arguments
from ...utils.errors import InputError
from ...utils.files import atomic_write
from ..residency import OnDemandNetwork
from .prompt_encoding import Request, TextCondition, TextEncoders
from .prompt_reading import PromptReader

_SAMPLES = 16  # numbers of each weight that go into a network's fingerprint


class PromptCache:
    """Conditions by prompt. Prompts that a ``WeightedPrompts`` reads are not kept. Threads may share one.

    Args:
        directory: where they are kept beyond this process, one ``.npz`` file of some megabytes each;
            made if missing.
        max_entries: most conditions in memory; the least recently used one goes first.

    Attributes:
        hits, misses: of prompts, since the cache was made.
    """

    @checks_arguments
    def __init__(self, directory: str | os.PathLike[str] | None = None, max_entries: Annotated[int, Range(1)] = 64):
        self.directory = None if directory is None else os.path.abspath(os.path.expanduser(directory))
        if self.directory is not None:
            if os.path.exists(self.directory) and not os.path.isdir(self.directory):
                raise InputError(f"{self.directory} is a file; conditions are kept in a directory. Name another one.")
            os.makedirs(self.directory, exist_ok=True)
        self.max_entries, self.hits, self.misses = max_entries, 0, 0
        self._entries: collections.OrderedDict[str, TextCondition] = collections.OrderedDict()
        self._lock = threading.Lock()  # of the three

    def encode(
        self,
        encode: Callable[[TextEncoders, list[Request], int], list[TextCondition]],
        encoders: TextEncoders,
        requests: list[Request],
        max_sequence_length: int,
    ) -> list[TextCondition]:
        """What ``encode(encoders, requests, max_sequence_length)`` gives, encoding only what is not known.

        Each prompt of a request is kept by itself, so a negative prompt is encoded once for all.
        """
        if type(encoders.reader) is not PromptReader:  # prompts of any length take as much room as the longest beside
            return encode(encoders, requests, max_sequence_length)
        reading = f"{reading_of(encoders)} {max_sequence_length}"
        rows, known, missing, hits = [], {}, {}, 0
        for request in requests:
            texts = zip(request.prompt, request.prompt_2, request.prompt_3)
            rows.append([_key(reading, text, request.clip_skip) for text in texts])
            for index, key in enumerate(rows[-1]):
                if key not in known and key not in missing:
                    found = self._get(key)
                    if found is None:
                        missing[key] = request, index
                        continue
                    known[key] = found
                hits += 1
        with self._lock:
            self.hits, self.misses = self.hits + hits, self.misses + len(missing)
        known.update(self._encode_missing(encode, encoders, missing, max_sequence_length))
        return [TextCondition.cat([known[key] for key in keys]).astype(encoders.dtype) for keys in rows]

    def _encode_missing(self, encode, encoders, missing, max_sequence_length):
        by_skip = {}
        for key, (request, index) in missing.items():
            by_skip.setdefault(request.clip_skip, []).append((key, request, index))
        groups = list(by_skip.items())
        requests = [
            Request(
                *([getattr(request, name)[index] for _, request, index in some] for name in _TEXTS), clip_skip=clip_skip
            )
            for clip_skip, some in groups
        ]
        fresh = {}
        alone = dataclasses.replace(encoders, using=lambda name: _row_by_row(encoders.tower(name)))
        for (_, some), condition in zip(groups, encode(alone, requests, max_sequence_length) if requests else []):
            for row, (key, _, _) in enumerate(some):
                fresh[key] = TextCondition(condition.embeds[row : row + 1], condition.pooled[row : row + 1])
                self._put(key, fresh[key])
        return fresh

    def _get(self, key):
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        path = self._path(key)
        if path is None or not os.path.isfile(path):
            return None
        try:
            with np.load(path) as arrays:
                condition = TextCondition(*(paddle.to_tensor(arrays[name]) for name in ("embeds", "pooled")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: made anew
            return None
        self._remember(key, condition)
        return condition

    def _put(self, key, condition):
        self._remember(key, condition)
        path = self._path(key)
        if path is not None:
            arrays = {name: getattr(condition, name).astype("float32").numpy() for name in ("embeds", "pooled")}
            with atomic_write(path) as file:
                np.savez(file, **arrays)

    def _remember(self, key, condition):
        with self._lock:
            self._entries[key] = condition
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)

    def _path(self, key):
        return None if self.directory is None else os.path.join(self.directory, key + ".npz")


@contextlib.contextmanager
def _row_by_row(tower: AbstractContextManager[Any]) -> Iterator[Callable[..., Any]]:
    """Gives the network of ``tower`` as a function that runs it for each row of its input by itself."""
    with tower as network:
        yield lambda rows, **options: _Rows([network(row, **options) for row in rows.split(rows.shape[0])])


class _Rows:
    """Outputs of a network for one row each, as its output for all of them."""

    def __init__(self, outputs: list[Any]) -> None:
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        return _joined([getattr(output, name) for output in self._outputs])

    def __getitem__(self, index: int) -> Any:
        return _joined([output[index] for output in self._outputs])


def _joined(parts: list[Any]) -> Any:
    """Tensors one after the other on the batch axis; of tuples of tensors, each."""
    return paddle.concat(parts) if isinstance(parts[0], paddle.Tensor) else tuple(map(paddle.concat, zip(*parts)))


_TEXTS = ("prompt", "prompt_2", "prompt_3")


def _key(reading, texts, clip_skip):
    return hashlib.sha256(repr((reading, texts, clip_skip or 0)).encode()).hexdigest()[:40]


def reading_of(encoders: TextEncoders) -> str:
    """All that a condition depends on but its text, as a short string."""
    digest = hashlib.sha256()
    suffixes = ("", "_2", "_3")
    towers = [getattr(encoders, f"text_encoder{suffix}") for suffix in suffixes]
    for suffix, tower, mark in zip(suffixes, towers, _fingerprints(towers)):
        tokenizer = getattr(encoders, f"tokenizer{suffix}")
        digest.update(mark)
        digest.update(repr(None if tokenizer is None else tokenizer(["a b", "<s> ü"]).input_ids).encode())
        digest.update(_added(tower, tokenizer))
    digest.update(repr((encoders.joint_attention_dim, encoders.pooled_projection_dim)).encode())
    digest.update(repr(encoders.clip_max_length).encode())
    return digest.hexdigest()


def _added(tower, tokenizer):
    """Bytes that change with the tokens that were added and with all of their embeddings."""
    added = getattr(tokenizer, "added_tokens", None)
    if not added:
        return b""
    rows = b""
    if hasattr(type(tower), "get_input_embeddings"):  # of a network on demand, they are in its own fingerprint
        rows = tower.get_input_embeddings().weight[min(added.values()) :].astype("float32").numpy().tobytes()
    return repr(sorted(added.items())).encode() + rows


def fingerprint(network: Any) -> bytes:
    """Bytes that change with the weights of ``network``, its layers and their settings."""
    return _fingerprints([network])[0]


def _fingerprints(networks: list[Any]) -> list[bytes]:
    """The :func:`fingerprint` of each; of all together a device is read once, as each read waits for its work."""
    states = {n: n.state_dict() for n in networks if n is not None and not isinstance(n, OnDemandNetwork)}
    samples = iter(_samples([tensor for state in states.values() for tensor in state.values()]))
    found = {None: b"absent", **{n: n.fingerprint() for n in networks if isinstance(n, OnDemandNetwork)}}
    for network, state in states.items():
        digest = hashlib.sha256(repr(network).encode())
        for name, tensor in state.items():
            digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode() + next(samples).tobytes())
        found[network] = digest.digest()
    return [found[network] for network in networks]


def _samples(tensors: list[paddle.Tensor]) -> list[np.ndarray]:
    """Some numbers of each tensor, float32."""
    flat = [tensor.detach().reshape([-1]) for tensor in tensors]
    some = [x[:: max(1, x.shape[0] // _SAMPLES)].astype("float32") for x in flat]
    found: list[Any] = [None] * len(some)
    for place in {str(x.place) for x in some}:  # several, where networks are offloaded
        there = [i for i, x in enumerate(some) if str(x.place) == place]
        ends = np.cumsum([some[i].shape[0] for i in there])
        for i, numbers in zip(there, np.split(paddle.concat([some[i] for i in there]).numpy(), ends[:-1])):
            found[i] = numbers
    return found
