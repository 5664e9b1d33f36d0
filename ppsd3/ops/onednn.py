"""float32 convolution, softmax and activations on the CPU through the oneDNN library of the paddlepaddle wheel.

Paddle's own CPU convolution builds the im2col matrix; oneDNN's compiled kernels skip it and are 2 to 4 times faster,
forward and backward (more on a busy machine, where Paddle's barrier per picture waits for the slower thread). The
library is called through its C interface with ctypes, on the addresses of Paddle tensors. :func:`unavailable` says
whether this can be done; call the rest only where it can.

Numbers below (kinds, arguments, queries) are those of ``dnnl_types.h`` in the oneDNN of :data:`KNOWN_VERSIONS`.
"""

import ctypes
import functools
import math
import os
import threading

import paddle

from .gradients import differentiable

# (major, minor): from that of Paddle 2.6.2's wheel to that of 3.3.1's, between which the interface stays the same.
KNOWN_VERSIONS = [(3, minor) for minor in range(2, 7)]

_CPU, _F32 = 1, 3
_FORWARD_TRAINING, _DIRECT = 64, 1
_FORWARD_INFERENCE, _SOFTMAX_ACCURATE = 96, 0x30000
_ELTWISE = {"gelu_tanh": 0x2B, "swish": 0x2C, "gelu_erf": 0x31}
_SRC, _DST, _WEIGHTS, _BIAS = 1, 17, 33, 41
_DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS, _DIFF_BIAS = 129, 145, 161, 169
_SCRATCHPAD, _BY_THE_USER = 80, 1
# Argument -> the query that tells in which layout a primitive wants it.
_LAYOUT_QUERY = {
    _SRC: 129, _DIFF_SRC: 130, _WEIGHTS: 131, _DIFF_WEIGHTS: 132,
    _DST: 133, _DIFF_DST: 134, _SCRATCHPAD: 136,
}  # fmt: skip
_TAG_ANY = 1  # the primitive chooses

# One operation at a time: each uses all cores, and primitives that two threads make at once come out wrong.
_lock = threading.RLock()

_Handle = ctypes.c_void_p
_Dims = ctypes.c_int64 * 12
_Pair = ctypes.c_int64 * 2


class _Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_int), ("minor", ctypes.c_int)]  # and more, which nothing here reads


class _Argument(ctypes.Structure):
    _fields_ = [("index", ctypes.c_int), ("memory", _Handle)]


class Unavailable(Exception):
    """Why oneDNN is not used; caught by :func:`unavailable`."""


@functools.cache
def unavailable():
    """Why oneDNN is not used, None if it is: the wheel carries a known version, and that makes a CPU engine."""
    try:
        with _lock:
            _engine()
        return None
    except (OSError, AttributeError, RuntimeError, Unavailable) as error:  # wheels for GPUs, macOS, Windows
        return str(error)


def conv2d(x, weight, bias, stride, padding):
    """Convolution of contiguous or strided float32 CPU tensors; differentiable once.

    Shapes: ``x [B, in, H, W]``, ``weight [out, in, kh, kw]``, ``bias [out]``. ``padding``: zeros at the top, bottom,
    left and right.
    """
    with _lock:  # copies of strided views too are made by one thread at a time
        return _conv2d(x, weight, bias, stride=stride, padding=padding)


def softmax_(x):
    """Softmax over the last axis of a contiguous float32 CPU tensor, in place and without a gradient; returns ``x``.

    A seventh of the time that Paddle takes.
    """
    with _lock:
        layout, descriptor, primitive = _softmax(tuple(x.shape))
        memory = _Memory(layout, x)
        _execute(descriptor, primitive, {_SRC: memory, _DST: memory})
    return x


@functools.lru_cache(maxsize=512)
def _softmax(shape):
    layout, create = _plain(shape), "dnnl_softmax_forward_primitive_desc_create"
    kind = _FORWARD_INFERENCE, _SOFTMAX_ACCURATE
    descriptor = _made(create, _engine(), *kind, layout, layout, len(shape) - 1, _attributes())
    return layout, descriptor, _made("dnnl_primitive_create", descriptor)


def eltwise(x, name, alpha=0.0):
    """An activation of a float32 CPU tensor, without a gradient: a quarter of the time that Paddle takes.

    Args:
        name: gelu_tanh; gelu_erf; swish: ``x * sigmoid(alpha x)``.
        alpha: of swish.
    """
    x = x.contiguous()
    y = paddle.empty(x.shape, x.dtype)
    with _lock:
        layout, descriptor, primitive = _eltwise(math.prod(x.shape), name, alpha)
        _execute(descriptor, primitive, {_SRC: _Memory(layout, x), _DST: _Memory(layout, y)})
    return y


@functools.lru_cache(maxsize=512)
def _eltwise(size, name, alpha):
    layout, create = _plain((size,)), "dnnl_eltwise_forward_primitive_desc_create"
    kind, parameters = (_FORWARD_INFERENCE, _ELTWISE[name]), (ctypes.c_float(alpha), ctypes.c_float(0.0))
    descriptor = _made(create, _engine(), *kind, layout, layout, *parameters, _attributes())
    return layout, descriptor, _made("dnnl_primitive_create", descriptor)


def _forward(keep, x, weight, bias, stride, padding):
    with _lock:
        plan = _plan(tuple(x.shape), tuple(weight.shape), stride, padding)
        y = paddle.empty(plan.output_shape, x.dtype)
        plan.forward({_SRC: x, _WEIGHTS: weight, _BIAS: bias, _DST: y})
    return y, (x, weight)


def _backward(dy, wanted, x, weight, stride, padding):
    dx = dweight = dbias = None
    with _lock:
        plan = _plan(tuple(x.shape), tuple(weight.shape), stride, padding)
        if wanted[0]:
            dx = paddle.empty(x.shape, x.dtype)
            plan.backward_data({_DIFF_DST: dy, _WEIGHTS: weight, _DIFF_SRC: dx})
        if any(wanted[1:]):
            dweight, dbias = paddle.empty(weight.shape, x.dtype), paddle.empty(weight.shape[:1], x.dtype)
            plan.backward_weights({_DIFF_DST: dy, _SRC: x, _DIFF_WEIGHTS: dweight, _DIFF_BIAS: dbias})
    return dx, dweight, dbias


_conv2d = differentiable(_forward, _backward)


@functools.lru_cache(maxsize=512)
def _plan(x_shape, weight_shape, stride, padding):
    return _Plan(x_shape, weight_shape, stride, padding)


class _Plan:
    """The compiled primitives of one convolution geometry. oneDNN's handles are kept for the life of the process."""

    def __init__(self, x_shape, weight_shape, stride, padding):
        top, bottom, left, right = padding
        height = (x_shape[2] + top + bottom - weight_shape[2]) // stride + 1
        width = (x_shape[3] + left + right - weight_shape[3]) // stride + 1
        self.output_shape = [x_shape[0], weight_shape[0], height, width]
        self._shapes = tuple(x_shape), tuple(weight_shape), tuple(weight_shape[:1]), tuple(self.output_shape)
        self._window = _Pair(stride, stride), _Pair(0, 0), _Pair(top, left), _Pair(bottom, right)
        # Backward primitives are made from the forward one, which is their "hint".
        src, weights, bias, dst = self._descriptors()
        self._hint = _made(
            "dnnl_convolution_forward_primitive_desc_create",
            _engine(), _FORWARD_TRAINING, _DIRECT, src, weights, bias, dst, *self._window, _attributes(),
        )  # fmt: skip
        self.forward = _Primitive(self._hint)

    def _descriptors(self):
        x, weight, bias, y = self._shapes
        return _any_layout(x), _any_layout(weight), _plain(bias), _any_layout(y)

    @functools.cached_property
    def backward_data(self):
        src, weights, _, dst = self._descriptors()
        name = "dnnl_convolution_backward_data_primitive_desc_create"
        return _Primitive(_made(name, _engine(), _DIRECT, src, weights, dst, *self._window, self._hint, _attributes()))

    @functools.cached_property
    def backward_weights(self):
        src, weights, bias, dst = self._descriptors()
        name = "dnnl_convolution_backward_weights_primitive_desc_create"
        return _Primitive(
            _made(name, _engine(), _DIRECT, src, weights, bias, dst, *self._window, self._hint, _attributes())
        )


class _Primitive:
    """A primitive with the reorders between Paddle's plain layout and the layouts it wants."""

    def __init__(self, descriptor):
        self._descriptor, self._primitive = descriptor, _made("dnnl_primitive_create", descriptor)

    def __call__(self, tensors):
        """Runs on ``tensors`` (argument -> contiguous Tensor), which it reads or fills."""
        arguments, outputs, alive = {}, [], []
        for index, tensor in tensors.items():
            plain = _plain(tuple(tensor.shape))
            memory = _Memory(plain, tensor)
            # one axis has one layout: biases stay as they are
            wanted = plain if index in (_BIAS, _DIFF_BIAS) else _layout(self._descriptor, index)
            if not _library().dnnl_memory_desc_equal(plain, wanted):
                inner = _Memory(wanted, _buffer(wanted))
                if index in (_DST, _DIFF_SRC, _DIFF_WEIGHTS):
                    outputs.append((inner, memory))
                else:
                    _reorder(memory, inner)
                alive.append(memory)
                memory = inner
            arguments[index] = memory
        _execute(self._descriptor, self._primitive, arguments)
        for inner, memory in outputs:
            _reorder(inner, memory)


def _layout(descriptor, index):
    """Descriptor of the memory that the primitive of ``descriptor`` wants as argument ``index``."""
    return _Handle(_library().dnnl_primitive_desc_query_md(descriptor, _LAYOUT_QUERY[index], 0))


class _Memory:
    """oneDNN's view of a tensor's bytes; keeps the tensor alive as long as itself."""

    def __init__(self, descriptor, tensor):
        self.descriptor, self._tensor = descriptor, tensor
        self.handle = _made("dnnl_memory_create", descriptor, _engine(), _Handle(tensor.data_ptr()))

    def __del__(self):
        _library().dnnl_memory_destroy(self.handle)


def _buffer(descriptor):
    size = _library().dnnl_memory_desc_get_size(descriptor)
    return paddle.empty([(size + 3) // 4], "float32")


def _reorder(source, target):
    key = ctypes.cast(source.descriptor, _Handle).value, ctypes.cast(target.descriptor, _Handle).value
    _execute(*_reorder_primitive(*key), {_SRC: source, _DST: target})


@functools.cache  # descriptors live as long as the process, so their addresses are keys
def _reorder_primitive(source, target):
    engine, create = _engine(), "dnnl_reorder_primitive_desc_create"
    descriptor = _made(create, _Handle(source), engine, _Handle(target), engine, _attributes())
    return descriptor, _made("dnnl_primitive_create", descriptor)


def _execute(descriptor, primitive, memories):
    scratchpad = _layout(descriptor, _SCRATCHPAD)
    if _library().dnnl_memory_desc_get_size(scratchpad):
        memories = {**memories, _SCRATCHPAD: _Memory(scratchpad, _buffer(scratchpad))}
    array = (_Argument * len(memories))(*[_Argument(index, memory.handle) for index, memory in memories.items()])
    _check(_library().dnnl_primitive_execute(primitive, _stream(), len(memories), array), "dnnl_primitive_execute")
    _check(_library().dnnl_stream_wait(_stream()), "dnnl_stream_wait")


@functools.cache
def _plain(shape):
    """Descriptor of a contiguous float32 tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    dims = _Dims(*shape), _F32, _Dims(*strides)
    return _made("dnnl_memory_desc_create_with_strides", len(shape), *dims)


@functools.cache
def _any_layout(shape):
    return _made("dnnl_memory_desc_create_with_tag", len(shape), _Dims(*shape), _F32, _TAG_ANY)


def _made(function, *arguments):
    """The handle that ``function`` writes through its first parameter."""
    handle = _Handle()
    _check(getattr(_library(), function)(ctypes.byref(handle), *arguments), function)
    return handle


def _check(status, function):
    if status:
        raise RuntimeError(f"oneDNN's {function} failed with status {status}.")


@functools.cache
def _library():
    path = os.path.join(os.path.dirname(paddle.__file__), "libs", "libdnnl.so.3")
    if not os.path.exists(path):
        raise Unavailable("Paddle's wheel carries no oneDNN 3")
    library = ctypes.CDLL(path)
    library.dnnl_version.restype = ctypes.POINTER(_Version)
    version = library.dnnl_version().contents
    if (version.major, version.minor) not in KNOWN_VERSIONS:
        raise Unavailable(f"the numbers of oneDNN {version.major}.{version.minor} are not known")
    library.dnnl_primitive_desc_query_md.restype = _Handle
    library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    return library


@functools.cache
def _engine():
    return _made("dnnl_engine_create", _CPU, ctypes.c_size_t(0))


@functools.cache
def _attributes():
    """Scratch memory comes with each call. The library's own belongs to the thread that made a primitive, and a
    primitive that runs in another thread would work in memory that is not there."""
    attributes = _made("dnnl_primitive_attr_create")
    status = _library().dnnl_primitive_attr_set_scratchpad_mode(attributes, _BY_THE_USER)
    _check(status, "dnnl_primitive_attr_set_scratchpad_mode")
    return attributes


_local = threading.local()


def _stream():
    """One stream per thread: they are not to be shared."""
    if not hasattr(_local, "stream"):
        _local.stream = _made("dnnl_stream_create", _engine(), 1)  # 1: in order
    return _local.stream
