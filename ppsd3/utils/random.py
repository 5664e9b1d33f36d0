"""Gaussian noise from Paddle's generators or from torch's CPU generator, whose seeds give diffusers' pictures."""

from __future__ import annotations

import math
import operator
import os
import reprlib
import threading
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import paddle

from .checking import checks_arguments
from .device import usable_device
from .errors import InputError
from .paddle_internals import (
    Generator as PaddleGenerator,
    cpu_normals,
    default_cpu_generator,
    default_gpu_generators,
)
from .types import Dtype

_BLOCK = 16  # torch turns uniforms into normals in runs of 16: 8 radii, then 8 angles
_FIRST_SEED = 67280421310721  # of a new torch.Generator
_FRACTION_BITS = {"float32": 24, "float64": 53}
_MOST_NUMBERS = 2**34  # 64 GB
_DEVICES = ("cpu", "cuda", "gpu", "xpu", "npu", "mps")
_DTYPES = ("float16", "bfloat16", "float32", "float64")

_global_stream = threading.Lock()  # held by who draws from Paddle's global generator, or lends it another's state

# Byte layout of torch.Generator("cpu").get_state(): the C struct that torch has kept since Lua, padding included.
_TORCH_STATE = np.dtype(
    {
        "names": ["seed", "left", "seeded", "next", "key", "normal", "has_normal"],
        "formats": ["<u8", "<i4", "<i4", "<u8", ("<u8", 624), "<f8", "<i4"],
        "offsets": [0, 8, 12, 16, 24, 5024, 5040],
        "itemsize": 5056,
    }
)


class TorchGenerator:
    """The stream of ``torch.Generator("cpu").manual_seed(seed)``, without torch.

    The bits come from the Mersenne Twister MT19937 and are equal to torch's, and so is how many each call consumes. The
    normals agree to 5e-7 in float32 (torch's AVX2 and AVX-512 builds approximate log, sin and cos, a little differently
    from numpy), to 1e-15 in float64, and to one rounding of that in float16 and bfloat16. Checked against torch 2.13;
    its builds without AVX2 round the angle differently and are themselves 2e-6 away from its usual ones.

    Args:
        seed: -2**63 <= seed < 2**64. As in torch a negative one counts back from 2**64, and only the low
            32 bits reach the engine. Or "cpu", torch's argument, or nothing: then torch's own first seed.
        device: "cpu", for programs that name it.

    Raises:
        InputError: ``seed`` is not an integer or out of range, or another device.
    """

    device = "cpu"

    @checks_arguments
    def __init__(self, seed: int | str = _FIRST_SEED, device: Any = "cpu") -> None:
        self.manual_seed(seed if isinstance(seed, int) and str(device) == "cpu" else _seed_on(seed, device))

    def manual_seed(self, seed: int) -> TorchGenerator:
        """Restarts the stream at ``seed`` and returns the generator itself."""
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not -(2**63) <= seed < 2**64:
            raise InputError(f"seed={seed!r} cannot be used; give an integer from -2**63 to 2**64 - 1.")
        self._seed = int(seed) % 2**64
        self._engine: Any = np.random.MT19937()
        self._engine.state = np.random.RandomState(self._seed % 2**32).get_state(legacy=False)
        self._next_normal = None  # the second value of a scalar Box-Muller pair waits here for the next call
        return self

    def seed(self) -> int:
        """Restarts the stream at a seed from the system, and returns that."""
        return self.manual_seed(int.from_bytes(os.urandom(8), "little")).initial_seed()

    def initial_seed(self) -> int:
        """The seed as an unsigned 64-bit integer."""
        return self._seed

    def get_state(self) -> np.ndarray:
        """The state as uint8 ``[5056]``, in the layout of ``torch.Generator.get_state()``: torch can go on from it."""
        engine = self._engine.state["state"]
        position = int(engine["pos"])  # numbers used of the current 624
        state = np.zeros((), _TORCH_STATE)
        state["seed"], state["seeded"], state["key"] = self._seed, 1, engine["key"]
        state["left"], state["next"] = 625 - position, position % 624
        if self._next_normal is not None:
            state["normal"], state["has_normal"] = self._next_normal, 1
        return np.frombuffer(state.tobytes(), np.uint8).copy()

    def set_state(self, state: Any) -> None:
        """Continues from ``state``: uint8 ``[5056]`` from ``get_state`` here or of a torch CPU generator.

        Raises:
            InputError: ``state`` has another dtype or length.
        """
        try:
            array = np.ascontiguousarray(state)
        except ValueError as error:
            raise InputError(f"`state` is no generator's state ({error}). Pass what get_state() returned.") from error
        if array.dtype != np.uint8 or array.shape != (_TORCH_STATE.itemsize,):
            raise InputError(
                f"A generator state is uint8 [{_TORCH_STATE.itemsize}], this one is {array.dtype} {list(array.shape)}; "
                "pass what get_state() of a TorchGenerator or of a torch CPU generator returned."
            )
        fields = np.frombuffer(array.tobytes(), _TORCH_STATE)[0]
        self._seed = int(fields["seed"])
        self._engine = np.random.MT19937()
        engine: Any = {"key": fields["key"].astype(np.uint32), "pos": 625 - int(fields["left"])}
        self._engine.state = {"bit_generator": "MT19937", "state": engine}
        self._next_normal = float(fields["normal"]) if fields["has_normal"] else None

    @checks_arguments
    def randn(self, shape: Sequence[int], dtype: Dtype = "float32") -> np.ndarray:
        """Standard normals, equal to ``torch.randn(shape, generator=g, dtype=dtype)``.

        Args:
            dtype: float16, bfloat16, float32 or float64.

        Returns:
            numpy array of ``dtype``; for bfloat16, which numpy lacks, a float32 array whose values are bfloat16's.

        Raises:
            InputError: another dtype, or a negative size.
        """
        shape, dtype = _checked_shape(shape), _dtype_name(dtype)
        size = math.prod(shape)
        if size < _BLOCK:
            values = np.array([self._scalar_normal() for _ in range(size)], np.float64)
        else:
            values = self._block_normals(size, dtype)
        return _rounded(values, dtype).reshape(shape)

    def rand(self, shape: Sequence[int]) -> np.ndarray:
        """Uniform numbers in [0, 1), float32, equal to ``torch.rand(shape, generator=g)``."""
        shape = _checked_shape(shape)
        return self._uniform(math.prod(shape), "float32").reshape(shape)

    def _uniform(self, count, dtype):
        """``count`` uniforms in [0, 1) of float32 or float64: a fraction's worth of low bits, scaled."""
        bits = _FRACTION_BITS[dtype]
        if dtype == "float64":  # one value takes two numbers of the engine, high word first
            words = self._engine.random_raw(2 * count).reshape(count, 2)
            raw = words[:, 0] << np.uint64(32) | words[:, 1]
        else:
            raw = self._engine.random_raw(count)
        return (raw & np.uint64(2**bits - 1)).astype(dtype) * np.dtype(dtype).type(2.0**-bits)

    def _scalar_normal(self):
        """One normal in double precision, as torch makes them for fewer than 16 values whatever the dtype."""
        if self._next_normal is not None:
            value, self._next_normal = self._next_normal, None
            return value
        angle, radius = self._uniform(2, "float64").tolist()
        radius, angle = math.sqrt(-2.0 * math.log1p(-radius)), 2.0 * math.pi * angle
        self._next_normal = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _block_normals(self, size, dtype):
        """16 or more normals; float16 and bfloat16 are computed in float32."""
        compute = "float64" if dtype == "float64" else "float32"
        whole = size - size % _BLOCK
        # The two half types fill whole blocks only; the others draw for the remainder too, and throw that away.
        uniforms = self._uniform(size if dtype == compute else whole, compute)
        values = np.empty(size, compute)
        values[:whole] = _box_muller(uniforms[:whole])
        if whole < size:  # the last 16 values, some of them written already, are made anew from 16 fresh uniforms
            values[-_BLOCK:] = _box_muller(self._uniform(_BLOCK, compute))
        return values


Generator = Union[TorchGenerator, PaddleGenerator, Any]  # or torch.Generator("cpu")


def randn(
    shape: Sequence[int], generator: Generator | Sequence[Generator] | None = None, dtype: Dtype = "float32"
) -> paddle.Tensor:
    """Standard normals as a Paddle tensor on the current device.

    Args:
        shape: ``[B, ...]``.
        generator: where the noise comes from.

            - None: Paddle's global stream, the one that ``paddle.seed`` sets.
            - a ``TorchGenerator``: torch's CPU stream.
            - a ``torch.Generator`` of torch itself, on the CPU: its stream, and it advances as if torch had drawn.
            - a Paddle generator: drawn on the CPU, so a seed gives the same noise on every device; only that
              generator advances. (``paddle.Generator()`` and ``paddle.seed(s)`` return the global one.) A GPU's own
              default generator draws on that GPU.
            - a list of them, one per batch row: each draws ``[1, ...]``. A list of one counts as that one.
        dtype: float16, bfloat16, float32 (default) or float64. Paddle's streams are drawn in float32
            for the two half types and rounded, since not every device can draw in them.

    Raises:
        InputError: the list's length is not B, the list repeats one Paddle generator, ``generator`` is something
            else (an int, a torch.Generator on a GPU), or the dtype is not among the four.
    """
    shape, dtype = _checked_shape(shape), _dtype_name(dtype)
    generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if len(generators) == 1:
        return _draw(shape, generators[0], dtype).astype(dtype)
    _check_rows(generators, shape)
    rows = [_draw((1, *shape[1:]), row_generator, dtype) for row_generator in generators]
    return paddle.concat(rows, axis=0).astype(dtype)


def randn_tensor(
    shape: Sequence[int],
    generator: Generator | Sequence[Generator] | None = None,
    device: Any = None,
    dtype: Dtype | None = None,
) -> paddle.Tensor:
    """:func:`randn` with the arguments of diffusers' function of this name.

    Args:
        device: where the tensor is. Default: Paddle's present device.
        dtype: default ``paddle.get_default_dtype()``.
    """
    values = randn(shape, generator, paddle.get_default_dtype() if dtype is None else dtype)
    return values if device is None else values.to(usable_device(device))


def _seed_on(seed: Any, device: Any) -> Any:
    """The seed of ``TorchGenerator(seed, device)``, where torch's order, the device first, is understood too."""
    if isinstance(seed, str) and seed.split(":")[0] in _DEVICES:
        seed, device = _FIRST_SEED, seed
    if str(device) not in ("cpu", "Place(cpu)"):
        raise InputError(
            f"device is {str(device)!r}; a TorchGenerator draws what torch draws on the CPU, and the pipeline brings "
            "it to its device. Use TorchGenerator('cpu').manual_seed(seed)."
        )
    return seed


def _check_rows(generators, shape):
    if not shape or len(generators) != shape[0]:
        raise InputError(
            f"{len(generators)} generators for noise of shape {list(shape)}; give one generator, or one per batch row."
        )
    paddle_ids = [id(one) for one in generators if one is None or isinstance(one, PaddleGenerator)]
    if len(set(paddle_ids)) < len(paddle_ids):
        raise InputError(
            "The list of generators holds one Paddle generator several times (paddle.Generator() and paddle.seed(s) "
            "always return the same global one), so its rows would not have seeds of their own. "
            "Use [ppsd3.TorchGenerator(seed) for seed in seeds]."
        )


def _draw(shape, generator, dtype):
    """Normals as a tensor of float32 or float64 (half types: float32 that already has or will get the rounding)."""
    compute = "float64" if dtype == "float64" else "float32"
    if isinstance(generator, TorchGenerator):
        return paddle.to_tensor(generator.randn(shape, dtype).astype(compute))
    if generator is None or _is_gpu_default(generator):
        return _draw_from_global_stream(shape, compute)
    draw = _draw_from_paddle_generator if isinstance(generator, PaddleGenerator) else _draw_from_torch
    return draw(shape, generator, dtype)


def _draw_from_global_stream(shape, dtype):
    with _global_stream:
        return paddle.randn(shape, dtype=dtype)


def _draw_from_torch(shape, generator, dtype):
    """Draws with torch's own generator, which is told apart without importing torch."""
    on_cpu = str(getattr(generator, "device", "")) == "cpu"
    if not (type(generator).__module__.partition(".")[0] == "torch" and hasattr(generator, "get_state") and on_cpu):
        where = f" on {generator.device}" if hasattr(generator, "device") else ""
        raise InputError(
            f"generator={generator!r} of type {type(generator).__name__}{where} cannot draw noise here; "
            f"use ppsd3.TorchGenerator({generator if isinstance(generator, int) else 'seed'}), a paddle generator, a "
            "torch.Generator('cpu'), None, or a list of them."
        )
    state, ours = generator.get_state(), TorchGenerator()
    ours.set_state(state.numpy())
    values = _draw(shape, ours, dtype)
    state.numpy()[:] = ours.get_state()  # the tensor's own memory
    generator.set_state(state)
    return values


def _draw_from_paddle_generator(shape, generator, dtype):
    """Draws with the generator's state in the CPU's global generator, the only one that Paddle's kernels use."""
    default = default_cpu_generator()
    with _global_stream:
        saved = default.get_state()
        try:
            default.set_state(generator.get_state())
            values = cpu_normals(list(shape), "float64" if dtype == "float64" else "float32")
            advanced = default.get_state()
        finally:
            default.set_state(saved)
        generator.set_state(advanced)  # last, because the generator may be the global one itself
    return values if paddle.get_device() == "cpu" else paddle.to_tensor(values.numpy())


def _is_gpu_default(generator):
    return any(generator is own for own in default_gpu_generators())


def _box_muller(uniforms):
    """``[16 k]`` uniforms -> as many normals, in the same dtype; each run of 16 holds 8 radii, then 8 angles."""
    pairs = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))  # 1 - u lies in (0, 1]
    angle = uniforms.dtype.type(2 * math.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _rounded(values, dtype):
    if dtype != "bfloat16":
        return values.astype(dtype, copy=False)
    bits = values.astype(np.float32).view(np.uint32)  # bfloat16 is float32's upper half; round to nearest, ties to even
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


def _checked_shape(shape):
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except (TypeError, ValueError, AssertionError):  # the last two are Paddle's, of a tensor
        sizes = (-1,)
    if any(size < 0 for size in sizes) or math.prod(sizes) > _MOST_NUMBERS:
        raise InputError(
            f"shape={reprlib.repr(shape)} is no shape; give a list of integers that are not negative, {_MOST_NUMBERS} "
            "numbers in all or fewer."
        )
    return sizes


def _dtype_name(dtype):
    """``"float32"`` for ``"float32"``, ``paddle.float32``, ``np.float32`` and ``np.dtype("float32")``."""
    name = str(dtype).split(".")[-1].strip("'>")
    if name not in _DTYPES:
        raise InputError(f"dtype={dtype!r} cannot hold noise; use one of {', '.join(_DTYPES)}.")
    return name
