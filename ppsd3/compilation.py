"""Compiles parts of networks into static graphs: a function of tensors is traced once into a Paddle program.

A program runs without Python between its operations, which on a GPU takes most of the time at small sizes. A program
cannot hold the native CPU kernels, so that on a CPU it is slower than running eagerly with them.

``paddle.jit.to_static(network)`` and ``paddle.incubate.jit.inference(network)`` replace the network's ``forward``. A
network that is :class:`Compilable` knows, and does in a pipeline what was asked for: after the first it runs its own
graphs, as after ``compile()``; the second it calls with tensors alone, and says which argument cannot go through.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

import paddle
from paddle import nn
from paddle.static import InputSpec

from .ops.adapted import adapter_scale
from .utils.device import tune_thread
from .utils.errors import InputError
from .utils.logging import get_logger
from .utils.paddle_internals import (
    is_inference_function,
    is_static_function,
    leave_out_wrong_passes,
    run_as_written,
    untraced,
)
from .utils.threads import changes_networks, process_wide

if TYPE_CHECKING:
    from typing_extensions import Self


run_as_written(os.path.dirname(__file__))  # whichever network paddle.jit.to_static is called for


class CompiledFunction:
    """A function of tensors and of a network's parameters, traced at its first call.

    Args:
        network: owns the parameters that ``function`` reads; later changes of their values take effect.
        function: tensors -> a tensor, or several. Its Paddle operations must not depend on the sizes of open axes.
        specs: shape and dtype of each argument; -1 is an open axis, whose size may differ between calls.
    """

    def __init__(
        self,
        network: nn.Layer,
        function: Callable[..., Any],
        specs: Sequence[InputSpec],
    ) -> None:
        entry = _Entry(network, function)
        entry.training = False  # an inference program; eval() would switch the network itself
        self._call = paddle.jit.to_static(entry, input_spec=[list(specs)], full_graph=True)

    def __call__(self, *tensors: paddle.Tensor) -> Any:
        with process_wide:
            return self._call(list(tensors))

    def save(self, path: str) -> None:
        """Writes the program and the parameters that it reads as a model for Paddle Inference: ``path`` and ``.json``
        (before Paddle 3 ``.pdmodel``), ``path`` and ``.pdiparams``. It takes the tensors by the names of the specs."""
        with process_wide:
            paddle.jit.save(self._call, path)


class _Entry(nn.Layer):
    """What is traced. It is a layer because a program gets parameters only from the layer that it is made from."""

    def __init__(self, network: nn.Layer, function: Callable[..., paddle.Tensor]) -> None:
        super().__init__()
        self.network = network
        self._plain = paddle.jit.not_to_static(lambda tensors: function(*tensors))

    def forward(self, tensors):
        return self._plain(tensors)  # not rewritten by Paddle's source transformation


class ForwardReplaceable(nn.Layer):
    """Mixin of all networks: what happens when ``paddle.jit`` has put a function in the place of ``forward``."""

    _is_compilable = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in {"forward", "encode", "decode"} & set(vars(cls)):
            paddle.jit.not_to_static(getattr(cls, name))  # to_static traces what runs, not a source it has rewritten

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and not self._is_compilable and is_inference_function(value):
            raise InputError(
                f"paddle.incubate.jit.inference takes no {type(self).__name__}, whose calls give or take more than "
                "tensors. Call paddle.jit.to_static() for it instead, or write a model by ppsd3.export_pipeline()."
            )
        super().__setattr__(name, value)

    def __call__(self, *inputs: Any, **arguments: Any) -> Any:
        tune_thread()
        return (self._call_replaced if "forward" in vars(self) else super().__call__)(*inputs, **arguments)

    def _call_replaced(self, *inputs, **arguments):
        """A call after something has replaced ``forward``. Static functions of Paddle cannot give or take all that
        networks do; those that have graphs of their own are :class:`Compilable`."""
        if is_static_function(vars(self)["forward"]):
            return type(self).forward(self, *inputs, **arguments)
        return nn.Layer.__call__(self, *inputs, **arguments)  # type: ignore[arg-type]


class Compilable:
    """Mixin of models that can run parts of themselves as static graphs, by :meth:`_graph`.

    Attributes:
        _output_class: dataclass of what ``forward`` returns, unless ``return_dict`` is False.
    """

    _output_class: Callable[..., Any]
    _is_compilable = True
    _graphs: dict[tuple[Hashable, ...], CompiledFunction] | None = None  # by part, dtype, variant; None until compile()

    if TYPE_CHECKING:  # what the model has
        forward: Callable[..., Any]

        @property
        def dtype(self) -> paddle.dtype: ...

    @changes_networks
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
        asked = self._graphs is not None or ("forward" in vars(self) and is_static_function(self.forward))
        return asked and not paddle.is_grad_enabled() and paddle.in_dynamic_mode()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decode" and is_inference_function(
            value
        ):  # whose calls give the tensor alone, [0] of which is a row
            super().__setattr__(name, lambda *inputs, **arguments: self._output_class(value(*inputs, **arguments)))
        else:
            super().__setattr__(name, value)

    @property
    def is_inference_model(self) -> bool:
        """Whether ``paddle.incubate.jit.inference`` has replaced ``forward``, whose calls take tensors alone then."""
        return "forward" in vars(self) and is_inference_function(self.forward)

    def _call_replaced(self, *inputs, **arguments):
        assert isinstance(self, nn.Layer)
        own = type(self).forward
        given = dict(list(inspect.signature(own).bind(self, *inputs, **arguments).arguments.items())[1:])
        if self.is_inference_model:
            with process_wide:
                return self._call_inference_model(given)
        if not is_static_function(vars(self)["forward"]):
            return nn.Layer.__call__(self, *inputs, **arguments)
        if not all(map(_is_plain, given.values())):
            return own(self, **given)  # in its own graphs: ``is_compiled``
        with process_wide:
            tensors = nn.Layer.__call__(self, **{**given, "return_dict": False})
        return self._output_class(*tensors) if given.get("return_dict", True) else tensors

    def _call_inference_model(self, arguments: Mapping[str, Any]) -> Any:
        """The tensor that the graph of ``paddle.incubate.jit.inference`` makes of the arguments of ``forward``.

        Raises:
            InputError: an argument that it cannot take.
        """
        assert isinstance(self, nn.Layer)
        given = {name: value for name, value in arguments.items() if not _is_left_out(value)}
        given.pop("return_dict", None)  # such a call returns its one tensor, whatever it says here
        others = [name for name, value in given.items() if not isinstance(value, paddle.Tensor)]
        if adapter_scale(self) != 1:
            others.append("the scale of LoRA layers")
        if others:
            raise InputError(
                f"{', '.join(others)} cannot go through the graph of paddle.incubate.jit.inference, which takes "
                f"tensors alone. Leave it out, or make graphs of this {type(self).__name__} by compile() or "
                "paddle.jit.to_static() instead, which know it."
            )
        leave_out_wrong_passes(vars(self)["forward"])
        return nn.Layer.__call__(self, **given, return_dict=False)

    def _graph(
        self, name: str, function: Callable[..., paddle.Tensor], shapes: Sequence[Sequence[int]], *variant: Hashable
    ) -> CompiledFunction:
        """The graph of ``function``, traced at its first call; ``variant`` is what it depends on beside its tensors."""
        assert isinstance(self, nn.Layer)
        key = (name, self.dtype, *variant)
        with process_wide:
            if self._graphs is None:
                object.__setattr__(self, "_graphs", {})
            assert self._graphs is not None
            if key not in self._graphs:
                self._graphs[key] = CompiledFunction(self, function, [InputSpec(shape, self.dtype) for shape in shapes])
            return self._graphs[key]

    def _forget_graphs(self) -> None:
        """Drops the graphs, after a change that a traced graph would not see."""
        if self._graphs is not None:
            self._graphs.clear()
        forward = vars(self).get("forward")
        if is_static_function(forward):
            object.__setattr__(self, "forward", untraced(forward))
        elif is_inference_function(forward):
            del self.forward
            get_logger(__name__).warning(
                f"This {type(self).__name__} has changed, and the graph that paddle.incubate.jit.inference made of it "
                "has not: it runs eagerly again. Call paddle.incubate.jit.inference once more to have a graph."
            )


def _is_plain(value):
    """Whether Paddle's static functions can take the argument."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, paddle.Tensor))


def _is_left_out(value):
    """Whether an argument says nothing: None, or an empty collection."""
    return value is None or (isinstance(value, (dict, list, tuple)) and not value)
