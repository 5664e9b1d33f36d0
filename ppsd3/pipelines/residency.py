"""Where networks are while they do not compute: in memory, on another device, or in their files.

A pipeline takes each network for a stage of its work by ``with pipe.using(name) as network:``. What happens at either
end is decided here and nowhere else. Pipelines that share a network agree on where it is.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import paddle
from paddle import nn

from ..loaders.loan import Loan, bring_home, tensors_of
from ..loaders.on_demand import OnDemandNetwork
from ..modeling_utils import ModelMixin
from ..utils.device import available_memory
from ..utils.errors import InputError
from ..utils.paddle_internals import Place, empty_cache
from .prefetching import Prefetcher


class Resident:
    """The networks stay where they are: in memory, or in their files."""

    place: Place | None = None  # where offloaded networks compute

    def resident(self, network: Any) -> AbstractContextManager[Any]:
        """Context manager that gives the network, ready to compute."""
        return network.resident() if isinstance(network, OnDemandNetwork) else contextlib.nullcontext(network)

    def take(self, network: Any) -> None:
        """Moves a network, or what has been added to it, to where it is while it does not compute."""


class Offload(Resident):
    """The networks are in the computer's memory, and on ``place`` while they compute."""

    place: Place

    def __init__(self, networks: Iterable[nn.Layer], place: Place) -> None:
        self.place, self._lock = place, threading.Lock()
        for network in networks:
            self.take(network)
        empty_cache(place)

    def resident(self, network: Any) -> AbstractContextManager[Any]:
        return self._lent(network) if isinstance(network, nn.Layer) else super().resident(network)

    def _lent(self, network: nn.Layer) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def take(self, network: Any) -> None:
        if isinstance(network, nn.Layer):
            bring_home(network)
            network._offload = self
            _tell_pipelines(network)

    def let_go(self, network: nn.Layer) -> None:
        """Leaves a network in memory, as any other."""
        del network._offload
        _tell_pipelines(network)

    def __deepcopy__(self, memo: Any) -> Offload:
        return self  # of a network that is copied


class ModelOffload(Offload):
    """A network is on ``place`` while it is used."""

    def __init__(self, networks: Iterable[nn.Layer], place: Place) -> None:
        self._loans: dict[nn.Layer, Loan] = {}  # of those that are used
        super().__init__(networks, place)

    @contextlib.contextmanager
    def _lent(self, network: nn.Layer) -> Iterator[Any]:
        user = object()
        try:
            with self._lock:
                if network not in self._loans:
                    self._loans[network] = Loan(tensors_of(network, include_sublayers=True), self.place)
                self._loans[network].begin(user)
            yield network
        finally:
            with self._lock:
                self._end(network, user)

    def _end(self, network, user):
        loan = self._loans.get(network)
        if loan is not None:
            loan.end(user)
            if not loan.users:
                del self._loans[network]  # what it has may have changed by the next time
                empty_cache(self.place)


class SequentialOffload(Offload):
    """A part of a network is on ``place`` while it is called: a block, or a layer outside of the blocks. On a GPU the
    next part is copied meanwhile."""

    def __init__(self, networks: Iterable[nn.Layer], place: Place) -> None:
        self._ahead = Prefetcher(place) if place.is_gpu_place() else None
        self._parts: dict[nn.Layer, _Parts] = {}
        super().__init__(networks, place)

    def take(self, network: Any) -> None:
        if not isinstance(network, nn.Layer) or (network in self._parts and self._parts[network].are_all()):
            return
        if network in self._parts:
            self.let_go(network)
        super().take(network)
        self._parts[network] = _Parts(network, self.place, self._ahead)

    def let_go(self, network: nn.Layer) -> None:
        self._parts.pop(network).remove()
        super().let_go(network)

    @contextlib.contextmanager
    def _lent(self, network: nn.Layer) -> Iterator[Any]:
        with self._lock:
            self.take(network)
            parts = self._parts[network]
            parts.users += 1
        try:
            yield network
        finally:
            with self._lock:
                parts.users -= 1
                parts.end()


class _Parts:
    """The parts of a network, each of which brings its weights to ``place`` when it is called.

    Args:
        ahead: brings those of the next part meanwhile.
    """

    def __init__(self, network: nn.Layer, place: Place, ahead: Prefetcher | None) -> None:
        self.users, self._network, self._place, self._ahead = 0, network, place, ahead
        self._tensors = tensors_of(network, include_sublayers=True)
        size = sum(int(tensor.size) * tensor.element_size() for tensor in self._tensors)
        if ahead is not None and 2 * size < available_memory():
            bring_home(network, pinned=True)
        layers = network.sublayers(include_self=True)
        owned = {layer: tensors_of(layer, include_sublayers=False) for layer in layers}
        self._loans = {layer: Loan(tensors, place) for layer, tensors in owned.items() if tensors}
        self._networks = [layer for layer in layers if isinstance(layer, ModelMixin)]
        for inner in self._networks:
            inner._execution_place = place
        self._calls = []
        for layer, brought in _called_alone(network):
            loans = [self._loans[part] for part in brought if part in self._loans]
            if loans:
                self._calls.append(_CallOnDevice(layer, loans, ahead))

    def are_all(self) -> bool:
        """Whether the network holds what it held."""
        now = tensors_of(self._network, include_sublayers=True)
        return len(now) == len(self._tensors) and all(a is b for a, b in zip(now, self._tensors))

    def end(self) -> None:
        """Takes back what is not used any more, also where an interruption has left it."""
        if self._ahead is not None:
            self._ahead.forget()
        if not self.users:
            for loan in self._loans.values():
                loan.end_all()
            empty_cache(self._place)

    def remove(self) -> None:
        """Leaves the layers as they were."""
        self.end()
        for call in self._calls:
            call.remove()
        for inner in self._networks:
            del inner._execution_place


class _CallOnDevice:
    """Takes the place of a layer's ``forward``: a hook after the call would not run after an error."""

    def __init__(self, layer: nn.Layer, loans: Sequence[Loan], ahead: Prefetcher | None) -> None:
        self._layer, self._loans, self._ahead = layer, loans, ahead
        self._own, self._forward = vars(layer).get("forward"), layer.forward
        layer.forward = self

    def __call__(self, *inputs: Any, **arguments: Any) -> Any:
        if not paddle.in_dynamic_mode():
            raise InputError(
                "A static graph cannot bring its layers to a device one by one. Use enable_model_cpu_offload() with "
                "compile(), or leave one of the two out."
            )
        with self._on_device() if self._ahead is None else self._ahead.having(self._layer, self._loans):
            return self._forward(*inputs, **arguments)

    @contextlib.contextmanager
    def _on_device(self):
        user = object()
        try:
            for loan in self._loans:
                loan.begin(user)
            yield
        finally:
            for loan in self._loans:
                loan.end(user)

    def remove(self) -> None:
        """Gives the layer its own ``forward`` again."""
        if self._own is None:
            del self._layer.forward
        else:
            self._layer.forward = self._own

    def __deepcopy__(self, memo: Any) -> Any:
        raise InputError("A sequentially offloaded network cannot be copied. Call pipe.remove_all_hooks() before.")


def _called_alone(layer: nn.Layer) -> Iterator[tuple[nn.Layer, list[nn.Layer]]]:
    """``(layer, the layers that it brings)`` for all that may be called by itself.

    A block, which is an entry of a list, brings all that is in it. So does every layer in it, because some are called
    without the block, for all steps at once. What has blocks brings what is its own, and tables in its blocks, which T5
    reads for all of them.
    """
    inner = layer.sublayers(include_self=True)
    if not any(isinstance(part, nn.LayerList) for part in inner):
        yield from ((part, part.sublayers(include_self=True)) for part in inner)
        return
    lists = [part for part in inner if isinstance(part, nn.LayerList)]
    yield layer, [layer, *{part for blocks in lists for part in blocks.sublayers() if isinstance(part, nn.Embedding)}]
    for child in layer.children():
        for part in child if isinstance(child, nn.LayerList) else [child]:
            if isinstance(child, nn.LayerList) and not isinstance(part, ModelMixin):
                yield from ((some, some.sublayers(include_self=True)) for some in part.sublayers(include_self=True))
            else:
                yield from _called_alone(part)


def residency_for(pipeline: Any) -> Resident:
    """What decides where the networks of a new pipeline are. Its ``_residency`` is set when this changes."""
    _pipelines.add(pipeline)
    return residency_of(pipeline.components.values())


def _tell_pipelines(network):
    for pipeline in list(_pipelines):
        if any(part is network for part in pipeline.components.values()):
            pipeline._residency = residency_of(pipeline.components.values())


def residency_of(parts: Iterable[Any]) -> Resident:
    """What decides where these networks are; other parts are left out."""
    return next((vars(p)["_offload"] for p in parts if isinstance(p, nn.Layer) and "_offload" in vars(p)), _RESIDENT)


def join(networks: Sequence[nn.Layer]) -> None:
    """Offloads those that are not offloaded as the others are."""
    residency = residency_of(networks)
    for network in networks:
        if residency_of([network]) is not residency:
            residency.take(network)


_RESIDENT = Resident()
_pipelines: weakref.WeakSet[Any] = weakref.WeakSet()  # all that there are


def is_network(part: Any) -> bool:
    """Whether a component is a network, here or on demand."""
    return isinstance(part, (nn.Layer, OnDemandNetwork))
