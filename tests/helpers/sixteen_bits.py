"""16-bit arithmetic as a GPU does it, on a CPU, where Paddle has hardly any kernel for it.

::

    with sixteen_bits():
        pipe.to(dtype="float16")
        pipe("a red circle")

Within the block each operation of Paddle that gets float16 or bfloat16 computes in float32 and rounds its result, as
the kernels of GPUs do; and pipelines no longer refuse such weights on the CPU. Operands of two floating dtypes, which
most kernels of GPUs refuse and the others promote, are noted, and fail the block at its end. Not for gradients.
"""

import contextlib
import sys
import traceback
from pathlib import Path

import paddle
from paddle import _C_ops

import ppsd3
from ppsd3.ops import use_native
from ppsd3.serialization.tensors import cast
from ppsd3.utils import device

HALF = (paddle.float16, paddle.bfloat16)
FLOATING = (*HALF, paddle.float32, paddle.float64)

# What moves numbers or shows them in another shape has kernels for all dtypes, and some of it shares memory.
MOVES = {
    *("as_strided", "assign", "assign_out_", "concat", "contiguous", "copy_to", "diagonal", "expand", "expand_as"),
    *("flatten", "flatten_", "full", "full_", "full_like", "empty", "empty_like", "numel", "reshape", "reshape_"),
    *("shape", "share_data", "share_data_", "slice", "split", "split_with_num", "squeeze", "squeeze_", "stack", "tile"),
    *("transpose", "unbind", "unsqueeze", "unsqueeze_", "view_dtype", "view_shape", "zeros_like"),
}
MODULES = ("paddle._C_ops.", "paddle.tensor.", "paddle.linalg.", "paddle.nn.", "paddle.incubate.nn.", "ppsd3.")
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "matmul")
COMPARISONS = ("__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__")

_PACKAGE = str(Path(ppsd3.__file__).parent)
_cast = _C_ops.cast


@contextlib.contextmanager
def sixteen_bits(allowed_mixtures=()):
    """Emulates 16-bit arithmetic within the block; undoes itself.

    Args:
        allowed_mixtures: operators that may get two floating dtypes.

    Yields:
        operator -> number of calls with 16-bit operands.

    Raises:
        AssertionError: at the end of the block, an operator got operands of two floating dtypes.
    """
    calls, mixtures = {}, set()

    def note(name, dtypes):
        calls[name] = calls.get(name, 0) + 1
        if len(dtypes) > 1 and name not in allowed_mixtures:
            mixtures.add(f"{name} of {' and '.join(sorted(str(d).split('.')[-1] for d in dtypes))} at {_place()}")

    with contextlib.ExitStack() as stack:
        kernels = {name: getattr(_C_ops, name) for name in dir(_C_ops) if not name.startswith("_")}
        stand_ins = {
            id(kernel): _emulated(name, kernel, note)
            for name, kernel in kernels.items()
            if callable(kernel) and not name.startswith("cast")
        }
        stand_ins[id(_cast)] = _rounding(_cast)
        stand_ins[id(device.can_compute)] = lambda network: True
        for name, module in list(sys.modules.items()):
            if f"{name}.".startswith(MODULES) or name == "paddle":
                for attribute, value in list(vars(module).items()):
                    if id(value) in stand_ins:
                        _put(stack, module, attribute, stand_ins[id(value)])
        names = [f"__{prefix}{name}__" for name in OPERATORS for prefix in ("", "r")]
        for name in [*names, *COMPARISONS]:
            if hasattr(paddle.Tensor, name):
                _put(stack, paddle.Tensor, name, _emulated(name.strip("_"), getattr(paddle.Tensor, name), note))
        stack.enter_context(use_native(False))
        yield calls
    assert not mixtures, "operands of two dtypes:\n" + "\n".join(sorted(mixtures))


def _put(stack, owner, name, value):
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _emulated(name, kernel, note):
    """``kernel`` in float32, its results rounded to the dtype of its operands; what they are is noted."""

    def compute(*arguments, **options):
        tensors = [x for x in _flat([*arguments, *options.values()]) if x.dtype in FLOATING]
        dtypes = {tensor.dtype for tensor in tensors}
        half = next((dtype for dtype in HALF if dtype in dtypes), None)
        if half is None:
            return kernel(*arguments, **options)
        note(name, dtypes)
        if name in MOVES and len(dtypes) == 1:
            return kernel(*arguments, **options)
        if name == "clip":  # its limits are numbers of the dtype too
            arguments = [arguments[0], *(_rounded(limit, half) for limit in arguments[1:])]
        raised = _each(arguments, _raised)
        options = {key: _each(value, _raised) for key, value in options.items()}
        lowered = _each(kernel(*raised, **options), lambda x: _lowered(x, half) if x.dtype == paddle.float32 else x)
        if name.endswith("_") and isinstance(arguments[0], paddle.Tensor):  # in place
            _C_ops.assign_out_(lowered, arguments[0])
            return arguments[0]
        return lowered

    return compute


def _rounding(kernel):
    """Casts that round to nearest, which Paddle's on the CPU do not on every version."""

    def compute(x, dtype):
        return _lowered(x, dtype) if dtype in HALF and x.dtype in FLOATING else kernel(x, dtype)

    return compute


def _lowered(x, dtype):
    return cast(x if x.place.is_cpu_place() else x.cpu(), dtype)  # of a device, it would be cast by what calls this


def _raised(x):
    return _cast(x, paddle.float32) if x.dtype in HALF else x


def _rounded(number, dtype):
    if not isinstance(number, (int, float)):
        return number
    return float(cast(cast(paddle.to_tensor(float(number), "float32"), dtype), "float32"))


def _flat(values):
    for value in values:
        if isinstance(value, paddle.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flat(value)


def _each(value, change):
    if isinstance(value, paddle.Tensor):
        return change(value)
    return type(value)(_each(x, change) for x in value) if type(value) in (list, tuple) else value


def _place():
    """File and line of the package's code that is being run."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_PACKAGE)]
    return f"{frames[-1].filename[len(_PACKAGE) + 1 :]}:{frames[-1].lineno}" if frames else "?"
