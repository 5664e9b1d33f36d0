"""Compiles parts of networks into static graphs: a function of tensors is traced once into a Paddle program.

A program runs without Python between its operations, which on a GPU takes most of the time at small sizes. A program
cannot hold the native CPU kernels, so that on a CPU it is slower than running eagerly with them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Callable

import paddle
from paddle import nn
from paddle.static import InputSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class CompiledFunction:
    """A function of tensors and of a network's parameters, traced at its first call.

    Args:
        network: owns the parameters that ``function`` reads; later changes of their values take effect.
        function: tensors -> one tensor. Its Paddle operations must not depend on the sizes of open axes.
        shapes: of each argument; -1 is an open axis, whose size may differ between calls.
        dtype: of the arguments.
    """

    def __init__(
        self,
        network: nn.Layer,
        function: Callable[..., paddle.Tensor],
        shapes: Sequence[Sequence[int]],
        dtype: paddle.dtype,
    ) -> None:
        specs = [InputSpec(shape, dtype) for shape in shapes]
        entry = _Entry(network, function)
        entry.training = False  # an inference program; eval() would switch the network itself
        self._call = paddle.jit.to_static(entry, input_spec=[specs], full_graph=True)

    def __call__(self, *tensors: paddle.Tensor) -> paddle.Tensor:
        return self._call(list(tensors))


class _Entry(nn.Layer):
    """What is traced. It is a layer because a program gets parameters only from the layer that it is made from."""

    def __init__(self, network: nn.Layer, function: Callable[..., paddle.Tensor]) -> None:
        super().__init__()
        self.network = network
        self._plain = paddle.jit.not_to_static(lambda tensors: function(*tensors))

    def forward(self, tensors):
        return self._plain(tensors)  # not rewritten by Paddle's source transformation


class Compilable:
    """Mixin of models that can run parts of themselves as static graphs, by :meth:`_graph`."""

    _graphs: dict[tuple[Hashable, ...], CompiledFunction] | None = None  # by part, dtype, variant; None until compile()

    if TYPE_CHECKING:  # what the model has

        @property
        def dtype(self) -> paddle.dtype: ...

    def compile(self) -> Self:
        """Makes later calls run as static graphs, and returns the model.

        One trace serves all sizes and timesteps; a change of dtype makes another. Calls that record gradients run
        eagerly.
        """
        object.__setattr__(self, "_graphs", {})
        return self

    @property
    def is_compiled(self) -> bool:
        """Whether the next call runs as a static graph."""
        return self._graphs is not None and not paddle.is_grad_enabled()

    def _graph(
        self, name: str, function: Callable[..., paddle.Tensor], shapes: Sequence[Sequence[int]], *variant: Hashable
    ) -> CompiledFunction:
        """The graph of ``function``, traced at its first call; ``variant`` is what it depends on beside its tensors."""
        assert self._graphs is not None and isinstance(self, nn.Layer)
        key = (name, self.dtype, *variant)
        if key not in self._graphs:
            self._graphs[key] = CompiledFunction(self, function, shapes, self.dtype)
        return self._graphs[key]

    def _forget_graphs(self) -> None:
        """Drops the graphs, after a change that a traced graph would not see."""
        if self._graphs is not None:
            self._graphs.clear()
