"""All that the package uses of Paddle beside its public interface: elsewhere nothing private of Paddle is named.

Tried on Paddle 2.6.2 and 3.3.1. ``paddle.base`` was ``paddle.fluid`` before 2.6. A new Paddle that changes one of these
fails in ``tests/utils/test_paddle_internals.py``.

Of threads: whether gradients are recorded (``paddle.no_grad``), AMP, and how many OpenMP threads compute belong to a
thread; a new one records gradients and computes with one. Static mode belongs to a thread too, but a new one starts in
the mode in which the process is at that moment, so also in that of a graph that is being traced, and stays there. The
default dtype, the device's name, ``LazyGuard``, the names of parameters, the program that is being built, the
interpreters of programs and the random streams belong to the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Callable, TypeVar, cast

import numpy as np
import paddle
from paddle import nn

from .gpu import require_new_enough

require_new_enough()  # an older one has not all that follows
from paddle.base import core, framework  # noqa: E402
from paddle.base.framework import _current_expected_place, _dygraph_tracer  # noqa: E402
from paddle.jit.dy2static.program_translator import StaticFunction  # noqa: E402

# Public since 2.4, but documented as experimental: parameters made inside have no memory until they are given some.
LazyGuard = paddle.LazyGuard
# The type of ``Tensor.place``. ``paddle.CPUPlace()`` and its like are of types of their own.
Place = core.Place
# The type of what ``paddle.seed`` and ``paddle.Generator()`` return.
Generator = core.Generator

_names = itertools.count()
_setting_flags = threading.RLock()
_Function = TypeVar("_Function", bound=Callable[..., Any])


def no_grad(function: _Function) -> _Function:
    """``paddle.no_grad`` as a decorator.

    Paddle's own keeps the mode that it restores on the decorator: calls that overlap, in threads or inside one another,
    leave the wrong mode behind.
    """

    @functools.wraps(function)
    def without_gradients(*args: Any, **kwargs: Any) -> Any:
        with paddle.no_grad():
            return function(*args, **kwargs)

    return cast(_Function, without_gradients)


def leave_static_mode_of_others() -> None:
    """Puts a thread into dynamic mode that began while another traced a graph; call it while nobody traces."""
    if not paddle.in_dynamic_mode() and framework._dygraph_tracer_ is not None:  # the thread is not, the process is
        framework.global_var._dygraph_tracer_ = framework._dygraph_tracer_


def dynamic_mode() -> contextlib.AbstractContextManager[None]:
    """Within the block operations run at once, also while this thread traces a graph."""
    return contextlib.nullcontext() if paddle.in_dynamic_mode() else paddle.base.dygraph.guard()


@contextlib.contextmanager
def flags(**values: Any) -> Iterator[None]:
    """Sets flags of Paddle, which belong to the process, for a block; ``paddle.set_flags`` has no end."""
    with _setting_flags:
        before = paddle.get_flags(list(values))
        paddle.set_flags(values)
        try:
            yield
        finally:
            paddle.set_flags(before)


def fused(name: str) -> Callable[..., Any]:
    """A function of ``paddle.incubate.nn.functional``; AttributeError if this Paddle has none of that name."""
    return getattr(cast(Any, paddle).incubate.nn.functional, name)


def memory_efficient_attention(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: paddle.Tensor,
    bias: paddle.Tensor | None,
    causal: bool,
    scale: float,
    training: bool,
) -> paddle.Tensor:
    """Paddle's kernel of that name: ``bias`` ``[1, 1, Sq, Sk]`` or ``[B, h, Sq, Sk]``, or ``causal``, not both."""
    from paddle.incubate.nn import attn_bias, memory_efficient_attention as kernel

    mask = attn_bias.LowerTriangularMask() if causal else bias
    return kernel.memory_efficient_attention(q, k, v, mask, 0.0, scale, training=training)


def set_num_threads(threads: int) -> None:
    """Gives Paddle's and its libraries' CPU kernels so many threads; ``paddle.set_num_threads`` does not exist."""
    core.set_num_threads(threads)


def allocated_memory() -> int:
    """Bytes that Paddle's tensors have on the device that is in use; of a CPU there is no public count."""
    if paddle.get_device().split(":")[0] == "gpu":
        return int(paddle.device.cuda.memory_allocated())
    return int(core.host_memory_stat_current_value("Allocated", 0))


def peak_allocated_memory() -> int:
    """The most that :func:`allocated_memory` has been in this process."""
    if paddle.get_device().split(":")[0] == "gpu":
        return int(paddle.device.cuda.max_memory_allocated())
    return int(core.host_memory_stat_peak_value("Allocated", 0))


def current_place() -> core.Place:
    """Where Paddle computes at present, of the type of ``Tensor.place``; ``paddle.get_device()`` is a string."""
    place = core.Place()
    place.set_place(_current_expected_place())
    return place


def place_of(device: str) -> core.Place:
    """The place that Paddle calls ``device``, of the type of ``Tensor.place``: ``paddle.CUDAPlace(0)`` and its like are
    of types of their own before Paddle 3."""
    kind, _, index = device.partition(":")
    make = {"cpu": lambda _: paddle.CPUPlace(), "gpu": paddle.CUDAPlace, "xpu": paddle.XPUPlace}.get(kind)
    place = core.Place()
    place.set_place(paddle.CustomPlace(kind, int(index or 0)) if make is None else make(int(index or 0)))
    return place


def copy_to(tensor: paddle.Tensor, place: core.Place, blocking: bool = True) -> paddle.Tensor:
    """A copy of ``tensor`` on ``place``; ``Tensor.to`` costs a parse of the device's name.

    It is complete on return, or, unless ``blocking``, in the order of the device's present stream.
    """
    return tensor._copy_to(place, blocking)


def in_pinned_memory(tensor: paddle.Tensor) -> paddle.Tensor:
    """A CPU tensor with the values of ``tensor`` in page-locked memory, which a GPU can read while both compute.

    What ``Tensor.pin_memory`` gives is of a place of its own, for which Paddle has no kernels.
    """
    if not tensor.size:
        return tensor
    pinned = tensor.pin_memory()
    memory: Any = (ctypes.c_uint8 * (int(pinned.size) * pinned.element_size())).from_address(pinned.data_ptr())
    memory.owner = pinned  # kept as long as an array is over it
    kind = str(pinned.dtype).rpartition(".")[2]
    array = np.frombuffer(memory, "uint16" if kind == "bfloat16" else kind)
    return tensor_over(array.reshape(pinned.shape))


def empty_cache(place: core.Place) -> None:
    """Gives back to the device what Paddle keeps of memory that was freed there."""
    if place.is_gpu_place():
        paddle.device.cuda.empty_cache()
    elif place.is_custom_place() and hasattr(core, "device_empty_cache"):  # Paddle 3
        core.device_empty_cache()
    elif place.is_xpu_place() and hasattr(paddle.device.xpu, "empty_cache"):
        paddle.device.xpu.empty_cache()


def share_memory(tensor: paddle.Tensor, slot: paddle.Tensor) -> None:
    """Makes ``slot``, which stays the same object, hold the memory and dtype of ``tensor``; its shape stays."""
    tensor._share_buffer_to(slot)


def connect_store() -> Any:
    """A new connection to the store that ``paddle.distributed.init_parallel_env`` has opened; of one thread at a time.

    ``add(key, number)`` is the new value of a counter, ValueError or RuntimeError where the first process has ended.
    """
    host, _, port = _store_address().partition(":")
    return core.TCPStore(host, int(port), False, 0, 60)


def _store_address():
    """Where ``init_parallel_env`` finds it."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address and port:
        return f"{address}:{port}"
    return os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]


def without_memory(shape: Sequence[int]) -> paddle.Tensor:
    """A float32 tensor that has no memory until :func:`share_memory` gives it some."""
    kinds = core.VarDesc.VarType
    kind = kinds.DENSE_TENSOR if hasattr(kinds, "DENSE_TENSOR") else kinds.LOD_TENSOR  # named anew in Paddle 3
    return core.eager.Tensor(kinds.FP32, list(shape), f"ppsd3_unfilled_{next(_names)}", kind, True)


def free_memory(tensor: paddle.Tensor) -> None:
    """Releases the memory of ``tensor``, even if it is referenced elsewhere."""
    tensor._clear_data()


def tensor_over(array: np.ndarray) -> paddle.Tensor:
    """A CPU tensor over ``array``'s own memory, which it keeps alive; ``uint16`` means bfloat16.

    ``paddle.to_tensor`` copies; ``paddle.utils.dlpack`` has no bfloat16 from numpy.
    """
    return core.eager.Tensor(
        value=array,
        place=paddle.CPUPlace(),
        persistable=False,
        zero_copy=True,
        name=f"ppsd3_memory_{next(_names)}",
        stop_gradient=True,
    )


def cpu_normals(shape: list[int], dtype: str) -> paddle.Tensor:
    """What ``paddle.randn`` draws on the CPU, without making it the process's device."""
    return cast(Any, paddle)._C_ops.gaussian(shape, 0.0, 1.0, 0, getattr(paddle, dtype), paddle.CPUPlace())


def default_cpu_generator() -> core.Generator:
    """The generator that Paddle's CPU kernels draw from; there is one for the process."""
    return core.default_cpu_generator()


def default_gpu_generators() -> list[core.Generator]:
    """The default generators of the GPUs; empty in a Paddle without CUDA."""
    if not paddle.is_compiled_with_cuda():
        return []
    return [core.default_cuda_generator(index) for index in range(paddle.device.cuda.device_count())]


def allow_tf32(allowed: bool) -> None:
    """Whether float32 matrix products on GPUs may round their operands to TF32, which Paddle allows at first. For the
    whole process; without effect in builds for CPUs."""
    if hasattr(core, "set_cublas_switch"):
        core.set_cublas_switch(allowed)


def is_autocasting() -> bool:
    """Whether AMP casts at present; ``paddle.amp.is_autocast_enabled`` came after 2.6. Only in dynamic mode."""
    tracer: Any = _dygraph_tracer()
    return int(tracer._amp_level) != 0  # O0; numbers are compared in half the time


def has_hooks(layer: nn.Layer) -> bool:
    """Whether a call of ``layer`` does more than its class says: forward hooks, for which ``Layer`` has no public
    method, or a ``forward`` of its own."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks or "forward" in vars(layer))


def set_layer_dtype(layer: nn.Layer, dtype: Any) -> None:
    """What Paddle's own layers take for their dtype when they make new tensors."""
    layer._dtype = dtype


def set_num_embeddings(layer: nn.Embedding, number: int) -> None:
    """Rows that an embedding says that it has; its weight is replaced by the caller."""
    layer._num_embeddings = number


def group_norm_settings(norm: nn.GroupNorm) -> tuple[int, float]:
    """``(number of groups, epsilon)``, which the layer keeps to itself."""
    return norm._num_groups, norm._epsilon


def run_as_written(directory: str) -> None:
    """Keeps Paddle's bytecode tracer, which ``to_static`` uses unless ``full_graph=True``, out of the files under
    ``directory`` and what dataclasses generate: it cannot trace all of Python, and fails where it should give up."""
    core.eval_frame_skip_file_prefix((os.path.join(directory, ""), "<string>"))


def is_static_function(function: Any) -> bool:
    """Whether ``paddle.jit.to_static`` made ``function``."""
    return isinstance(function, StaticFunction)


def untraced(function: Any) -> Any:
    """A static function as it was before its first call: what it has traced is not in it."""
    fresh = function._clone()
    fresh._class_instance = function._class_instance
    return fresh


def is_inference_function(function: Any) -> bool:
    """Whether ``paddle.incubate.jit.inference``, which came after 2.6, made ``function``."""
    try:
        from paddle.incubate.jit import is_inference_mode
    except ImportError:
        return False
    return is_inference_mode(function)


def is_program(content: bytes) -> bool:
    """Whether ``content`` is a whole ``.pdmodel``, which Paddle before 3 writes."""
    try:
        core.ProgramDesc(content)
    except (ValueError, RuntimeError):
        return False
    return True


# What a predictor on a CPU must leave out. Paddle 3.3.1 gives two readers of a oneDNN result the same memory, and its
# pass for operations in place lets the first of them write over what the second has yet to read.
WRONG_PASSES = ("inplace_pass",)


def leave_out_wrong_passes(function: Any) -> None:
    """Makes what :func:`is_inference_function` knows optimize without :data:`WRONG_PASSES`; before its first call."""
    for cell in function.__closure__ or ():
        if isinstance(getattr(cell.cell_contents, "delete_pass_lists", None), list):
            passes = cell.cell_contents.delete_pass_lists
            cell.cell_contents.delete_pass_lists = [*passes, *(p for p in WRONG_PASSES if p not in passes)]
