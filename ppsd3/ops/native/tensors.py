"""What the native functions need of Paddle tensors: contiguous memory, addresses, sizes."""

import math


def dense(x):
    """``x``, contiguous."""
    return x if x.is_contiguous() else x.contiguous()


def pointer(x):
    """The address of a tensor's numbers, or None for no tensor."""
    return None if x is None else x.data_ptr()


def rows_of(x):
    """(number of rows, width): the leading axes together, and the last one."""
    *leading, width = x.shape
    return math.prod(leading), width
