"""Reads ``.pdparams`` files, which are pickles, without running anything that is in them.

A pickle is a program for a machine with a stack. One of the instructions calls any function by its name: the danger.
Here the standard library's ``pickletools``, which runs nothing, reads the instructions, and a machine follows those
that ``paddle.save`` uses for dicts, strings, numbers and numpy arrays. It calls nothing: a name stands for a mark that
says what its arguments mean, and a name that is not among the few of numpy's arrays ends the reading. The bytes of an
array stay in the mapped file until they are needed.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
from dataclasses import dataclass
from typing import Any, Callable, NoReturn

import numpy as np
import paddle

from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError
from ..utils.types import Dtype, PathLike, Shape
from .source import TensorInfo
from .tensors import NUMPY_DTYPES, convert, dtype_name, from_numpy, on_current_device, pieces

# The names that numpy's arrays need, by what they mean here; numpy 2 has moved some of them.
_GLOBALS = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "bytes",
}
# numpy's name of a dtype -> ours. Paddle gives bfloat16 to numpy as uint16, of which it has no tensors.
_DTYPES = {"f8": "float64", "f4": "float32", "f2": "float16", "u2": "bfloat16", "i8": "int64", "i4": "int32"}
_DTYPES.update({"i2": "int16", "i1": "int8", "u1": "uint8", "b1": "bool"})
# What paddle.save adds: names of parameters, and how it has split large arrays (before protocol 4).
_NAMES_KEY, _SPLIT_KEY = "StructuredToParameterName@@", "UnpackBigParamInfor@@"
_MAX_AXES = 9  # of a Paddle tensor
_MAX_ELEMENTS = 1 << 60  # that numpy can count the bytes of; an empty array's other axes may be of any size
_LARGE = 256  # bytes from which on an instruction's argument is left in the file


@dataclass
class _Mark:
    """A name that the pickle asks for; ``meaning`` is one of the values of ``_GLOBALS``."""

    meaning: str


@dataclass
class _Array:
    """An array: its bytes (a view of the file, or ``bytes``) and what numpy says of them."""

    dtype: str = ""
    shape: Shape = ()
    is_fortran: bool = False
    data: Any = b""
    start: int = 0


@dataclass
class _DType:
    name: str


@dataclass
class _Bytes:
    """Bytes in the file."""

    data: Any
    start: int


class PdparamsFile:
    """A ``.pdparams`` file as a :class:`~ppsd3.serialization.source.TensorSource`.

    Attributes:
        path: as it was given; metadata: ``{"format": "pd"}``, since a pickle says nothing.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointFormatError: not a pickle, cut off, or one that holds or asks for anything but names and arrays; the
            message names it.
    """

    path: str
    metadata: dict[str, str]

    def __init__(self, path: PathLike) -> None:
        self.path, self.metadata = os.fspath(path), {"format": "pd"}
        if not os.path.isfile(self.path):
            raise CheckpointNotFoundError(f"{self.path} does not exist. Check the path, or download the file again.")
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 2:
                raise self._no_pickle("it is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._arrays = self._arrays_of(_Machine(self._map, self._refuse).run())

    def _no_pickle(self, what: Any) -> CheckpointFormatError:
        return CheckpointFormatError(f"{self.path} is no pickle that paddle.save writes: {what}. Download it again.")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointFormatError(
            f"{self.path} {what}; weights need dicts, strings, numbers and numpy arrays alone. Nothing of it was run. "
            "Do not open it with paddle.load or pickle, which would."
        )

    def _arrays_of(self, content: Any) -> dict[str, _Array]:
        if not isinstance(content, dict):
            raise self._no_pickle(f"it holds a {type(content).__name__}, not a dict of tensors")
        content = {name: value for name, value in content.items() if name != _NAMES_KEY}
        split = content.pop(_SPLIT_KEY, {})
        if split:
            raise CheckpointFormatError(
                f"{self.path} has {', '.join(list(split)[:3])} in pieces, as paddle.save with protocol 2 or 3 writes "
                "large tensors. Save it again with the default protocol."
            )
        other = [name for name, value in content.items() if not isinstance(value, _Array) or not value.dtype]
        if other or not content:
            what = f"under {other[0]!r} is a {type(content[other[0]]).__name__}" if other else "it has no tensors"
            raise self._no_pickle(f"{what}; a network's file is a flat dict of tensors")
        return content

    def keys(self) -> list[str]:
        """Tensor names in the order of the file."""
        return list(self._arrays)

    def info(self, name: str) -> TensorInfo:
        """TensorInfo of ``name``."""
        array = self._arrays[name]
        return TensorInfo(array.dtype, array.shape, array.start, array.start + len(array.data))

    def load(
        self, name: str, dtype: Dtype | None = None, part: tuple[int, int] = (0, 1), scale: float = 1.0
    ) -> np.ndarray:
        """See :meth:`TensorSource.load`; arrays in the order of columns are copied, and those that are not aligned."""
        stored = self._arrays[name]
        order = "F" if stored.is_fortran else "C"
        array = np.frombuffer(stored.data, NUMPY_DTYPES[stored.dtype]).reshape(stored.shape, order=order)
        array = np.split(array, part[1])[part[0]] if part[1] > 1 else array
        target = stored.dtype if dtype is None else dtype_name(dtype)
        if target == stored.dtype and scale == 1.0:
            usable = array.flags.aligned and array.flags.writeable and array.flags.c_contiguous
            return array if usable else np.array(array, order="C")
        result = np.empty(array.shape, NUMPY_DTYPES[target])
        flat, out = array.reshape(-1), result.reshape(-1)
        for piece in pieces(array.size):
            if scale == 1.0:
                convert(flat[piece], stored.dtype, target, out[piece])
            else:
                scaled = np.empty(flat[piece].shape, np.float32)
                convert(flat[piece], stored.dtype, "float32", scaled)
                convert(scaled * np.float32(scale), "float32", target, out[piece])
        return result

    def read(self, name: str, dtype: Dtype | None = None) -> paddle.Tensor:
        """See :meth:`TensorSource.read`."""
        return on_current_device(from_numpy(self.load(name, dtype)))

    def forget(self, name: str) -> None:
        """See :meth:`TensorSource.forget`."""
        info = self.info(name)
        start = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = info.stop // mmap.PAGESIZE * mmap.PAGESIZE - start
        if info.start and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


class _View:
    """The mapped file as ``pickletools`` reads one: short arguments as bytes, long ones as views."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map, self._view, self._position = mapped, memoryview(mapped), 0

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> Any:
        start, stop = self._position, min(self._position + count, len(self._view))
        self._position = stop
        return self._map[start:stop] if stop - start < _LARGE else self._view[start:stop]

    def readline(self) -> bytes:
        end = self._map.find(b"\n", self._position, self._position + _LARGE)
        return self.read((len(self._view) if end < 0 else end + 1) - self._position)


class _Machine:
    """Follows the instructions of a pickle; ``refuse`` is called with what must not be there, and raises.

    Whatever is shown of a pickle in messages is text or a number: nested tuples that share their parts have no end.
    """

    def __init__(self, mapped: mmap.mmap, refuse: Callable[[str], NoReturn]) -> None:
        self._file: Any = _View(mapped)
        self._refuse = refuse
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks that marks have put aside
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle holds."""
        try:
            for operation, argument, _ in pickletools.genops(self._file):
                if operation.name == "STOP":
                    return self._stack.pop()
                if operation.name not in _INSTRUCTIONS:
                    self._refuse(f"has the instruction {operation.name}")
                _INSTRUCTIONS[operation.name](self, argument)
        except CheckpointFormatError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            self._refuse(f"is damaged or no pickle ({error})")
        self._refuse("is cut off")

    def skip(self, argument: Any) -> None:
        pass

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_bytes(self, data: Any) -> None:
        self._stack.append(_Bytes(data, self._file.tell() - len(data)))

    def mark(self, argument: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_tuple(self, count: int | None = None) -> tuple[Any, ...]:
        """The last ``count`` values, or those since the last mark."""
        if count is None:
            items, self._stack = self._stack, self._below.pop()
            return tuple(items)
        return tuple(reversed([self._stack.pop() for _ in range(count)]))

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(target, dict) or not isinstance(key, str):
                self._refuse(f"puts something under a {type(key).__name__} in a {type(target).__name__}")
            target[key] = value

    def remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # -- names: none is looked up, and none is called ----------------------------------------------------------------

    def name(self, name: str) -> None:
        if name not in _GLOBALS:
            self._refuse(f"asks for {name.replace(' ', '.')[:_LARGE]}")
        self._stack.append(_Mark(_GLOBALS[name]))

    def name_on_stack(self, argument: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self._refuse("asks for something whose name is no text")
        self.name(f"{module} {name}")

    def call(self, argument: Any) -> None:
        arguments, mark = self._stack.pop(), self._stack.pop()
        if not isinstance(mark, _Mark) or not isinstance(arguments, tuple):
            self._refuse(f"calls a {type(mark).__name__}")
        if mark.meaning == "array":
            self._stack.append(_Array())
        elif mark.meaning == "dtype" and isinstance(arguments[0], str):
            self._stack.append(_DType(arguments[0]))
        elif mark.meaning == "bytes" and arguments[1:] == ("latin1",):
            self._stack.append(_Bytes(bytes(arguments[0], "latin1"), 0))
        else:
            self._refuse(f"calls numpy's {mark.meaning} with other arguments than an array has")

    def build(self, argument: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _DType):
            if state[1] not in ("<", "|") or target.name not in _DTYPES:
                order = ">" if state[1] == ">" else ""
                self._refuse(f"has an array of numpy's dtype {order}{target.name[:_LARGE]}")
        elif isinstance(target, _Array):
            self._fill(target, *state)
        else:
            self._refuse(f"changes a {type(target).__name__}")

    def _fill(self, array, version, shape, dtype, is_fortran, content):
        if not isinstance(dtype, _DType) or dtype.name not in _DTYPES or not isinstance(content, _Bytes):
            self._refuse(f"has an array of a {type(content).__name__}, not of numbers")
        if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > _MAX_AXES:
            self._refuse("has an array whose shape Paddle cannot hold")
        array.dtype, array.shape, array.is_fortran = _DTYPES[dtype.name], tuple(shape), bool(is_fortran)
        array.data, array.start = content.data, content.start
        size = NUMPY_DTYPES[array.dtype].itemsize
        if (
            math.prod(array.shape) * size != len(content.data)
            or math.prod(n or 1 for n in array.shape) >= _MAX_ELEMENTS
        ):
            self._refuse("has an array whose shape does not go with its bytes")


# All that a machine knows: the instructions that pickle.dump uses for dicts, text, numbers and numpy arrays.
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.skip),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _Machine.push_bytes),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(machine.pop_tuple()),
    "TUPLE1": lambda machine, _: machine.push(machine.pop_tuple(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop_tuple(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop_tuple(3)),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_tuple(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_tuple()),
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
