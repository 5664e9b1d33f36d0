"""Products of float32 matrices: by which algorithm, for which sizes, and how exactly."""

import paddle

from ...utils.errors import ConfigError
from . import lib

OPTIONAL_SIGNATURES = {  # only where the CPU has the instructions; letters as in interface.SIGNATURES
    "amx_product": "ppppnnnnnnn",
    "product_bf16": "ppppnnnnn",
    "strassen": "ppppnnnnn",
}

PRECISIONS = ("highest", "high", "strassen", "medium")
_precision = "high"


class float32_matmul_precision:
    """How exactly native linear layers and attention multiply float32, from the call on; as a context manager, until
    its end.

    Args:
        precision (str): the names are torch's (``torch.set_float32_matmul_precision``).

            - "highest": float32, each sum in the usual way; relative errors near 5e-7.
            - "high" (the initial state): where the CPU has AMX, each operand as the sum of three bfloat16 numbers: up
              to twice as fast as "highest", and no less exact. Elsewhere as "highest".
            - "strassen": as "high", but where the CPU has AVX-512 and no AMX, wide layers with many rows by Strassen's
              algorithm: up to an eighth faster on AMD's CPUs. It mixes rows: errors are near 3e-6 of the largest result
              among some 200 rows, and what is not finite in one picture of a batch reaches the others.
            - "medium": operands of linear layers rounded to bfloat16, with sums in float32, where the CPU has AMX or
              AVX512-BF16: two to four times as fast, relative errors near 3e-3. Meant for training.

    Raises:
        ConfigError: another name.
    """

    def __init__(self, precision):
        global _precision
        if precision not in PRECISIONS:
            raise ConfigError(f"precision={precision!r} is not known. Choose one of {PRECISIONS}.")
        self._before, _precision = _precision, precision

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _precision
        _precision = self._before


def precision():
    """What :class:`float32_matmul_precision` has set."""
    return _precision


def algorithm(m, n, k, transpose_x=False, transpose_y=True):
    """What multiplies ``[m, k]`` and ``[k, n]`` now.

    Returns:
        ("amx_product", 3 or 1): as the sum of so many bfloat16 numbers each, on AMX tiles.
        ("strassen", 2 or 1): so many levels deep; two save a quarter of the multiplications and one an eighth.
        ("product_bf16", 1): operands rounded to bfloat16.
        ("matmul", 0): Paddle's product.

        The sizes are those from which each is measured to be the fastest: all but the last prepare their operands.
    """
    if _precision != "highest" and has_amx():
        parts = 1 if _precision == "medium" else 3
        if m >= 64 and n >= 32 and k >= 64 and m * n * k >= parts**3 << 20:
            return "amx_product", parts
    elif _precision == "medium" and hasattr(lib(), "ppsd3_product_bf16"):
        return "product_bf16", 1
    elif _precision == "strassen" and hasattr(lib(), "ppsd3_strassen"):
        if transpose_y and not transpose_x and min(n, k) >= 1024 and m >= 256:
            return "strassen", 2 if m >= 600 else 1
    return "matmul", 0


def has_amx():
    """Whether there are kernels on AMX tiles, and the system lets this process use the tiles."""
    return hasattr(lib(), "ppsd3_amx_product") and lib().ppsd3_amx_ready()


def product(a, b, transpose_x=False, transpose_y=False, bias=None, gelu_after=False):
    """``a b + bias``, or tanh-GELU of it: ``a [..., K]``, transposed ``[K, M]``; ``b [K, N]``, transposed ``[N, K]``.

    By Paddle, or as :class:`float32_matmul_precision` allows.
    """
    leading, k = ([a.shape[1]], a.shape[0]) if transpose_x else (a.shape[:-1], a.shape[-1])
    n, m = b.shape[0 if transpose_y else 1], a.size // k
    name, detail = algorithm(m, n, k, transpose_x, transpose_y)
    if name == "matmul":
        out = paddle.matmul(a, b, transpose_x, transpose_y)
        if gelu_after:
            lib().ppsd3_gelu(out.data_ptr(), pointer(bias), out.data_ptr(), m, n)
        elif bias is not None:
            lib().ppsd3_add_bias(out.data_ptr(), bias.data_ptr(), m, n)
        return out
    a, b, out = dense(a), dense(b), paddle.empty([*leading, n], dtype="float32")
    operands = (*map(pointer, (a, b, bias, out)), m, n, k)
    if name == "amx_product":
        lib().ppsd3_amx_product(*operands, transpose_x, transpose_y, gelu_after, detail)
    elif name == "strassen":
        lib().ppsd3_strassen(*operands, detail, gelu_after)
    else:
        lib().ppsd3_product_bf16(*operands, transpose_x, transpose_y)
        if gelu_after:
            lib().ppsd3_gelu(out.data_ptr(), None, out.data_ptr(), m, n)
    return out


def dense(x):
    """``x``, contiguous."""
    return x if x.is_contiguous() else x.contiguous()


def pointer(x):
    """The address of a tensor's numbers, or None for no tensor."""
    return None if x is None else x.data_ptr()
