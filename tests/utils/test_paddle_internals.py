"""Private parts of Paddle are named in ``ppsd3/utils/paddle_internals.py`` alone, and do there what it says."""

import ast
import gc
import pathlib
import threading

import numpy as np
import paddle
import pytest
from paddle import nn

from ppsd3.utils import paddle_internals as internals

PACKAGE = pathlib.Path(internals.__file__).parent.parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
HERE = "utils/paddle_internals.py"

PRIVATE = ("base", "fluid", "framework", "pir", "incubate", "core", "LazyGuard")
OTHERS = {"_actions", "_replace"}  # of argparse and of named tuples


def own_names(trees):
    """Names that begin with an underscore and that the package itself gives to something."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "__setattr__":
            names.update(a.value for a in node.args if isinstance(a, ast.Constant))
    return names


def internals_in(tree, known):
    """[(line, name)] of the private parts of Paddle that a source names; ``known`` are the package's own names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "paddle":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [part for a in node.names if a.name.split(".")[0] == "paddle" for part in a.name.split(".")]
        elif isinstance(node, ast.Attribute):
            of_paddle = isinstance(node.value, ast.Name) and node.value.id == "paddle"
            private = _is_private(node.attr) and node.attr not in known | OTHERS
            parts = [node.attr] if of_paddle or private else []
        else:
            continue
        found += [(node.lineno, p) for p in parts if p in PRIVATE or _is_private(p)]
    return found


def _is_private(name):
    return name.startswith("_") and not name.endswith("__")


def test_one_module_names_private_parts_of_paddle():
    trees = {path: ast.parse(source) for path, source in SOURCES.items()}
    known = own_names(trees.values())
    found = {path: internals_in(tree, known) for path, tree in trees.items()}
    assert found.pop(HERE)
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from paddle.base import core",
        "from paddle.framework import core",
        "import paddle.base.core",
        "paddle.base.core.set_num_threads(2)",
        "with paddle.LazyGuard(): pass",
        "from paddle import _C_ops",
        "tensor._share_buffer_to(other)",
        "layer._dtype = dtype",
    ],
)
def test_a_private_part_is_seen(source):
    tree = ast.parse(source)
    assert internals_in(tree, own_names([tree]))


@pytest.mark.parametrize(
    "source", ["import paddle\nfrom paddle import nn", "self._own = 1\nother._own", "paddle.no_grad()", "a.__class__"]
)
def test_a_public_one_is_not(source):
    tree = ast.parse(source)
    assert internals_in(tree, own_names([tree])) == []


def test_places():
    place = internals.current_place()
    tensor = paddle.arange(3)
    assert isinstance(place, internals.Place) and isinstance(tensor.place, internals.Place)
    assert str(place) == str(tensor.place)
    copy = internals.copy_to(tensor, place)
    copy[0] = 9
    assert tensor.tolist() == [0, 1, 2] and copy.tolist() == [9, 1, 2]


def test_places_by_their_names(monkeypatch):
    monkeypatch.setattr(paddle, "CUDAPlace", lambda index: paddle.CPUPlace())  # another type than Place before Paddle 3
    monkeypatch.setattr(paddle, "CustomPlace", lambda kind, index: paddle.CPUPlace())
    for name in ("cpu", "gpu:0", "npu:1"):
        place = internals.place_of(name)
        assert isinstance(place, internals.Place) and place.is_cpu_place()
        assert internals.copy_to(paddle.arange(3), place, blocking=False).tolist() == [0, 1, 2]
    internals.empty_cache(internals.place_of("cpu"))  # nothing to do


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_pinned_memory(monkeypatch, dtype):
    """``Tensor.pin_memory`` is documented to give a copy in page-locked memory, at an address of the host."""

    def pin_memory(self):
        pinned.append(internals.copy_to(self, self.place))
        return pinned[0]

    monkeypatch.setattr(paddle.Tensor, "pin_memory", pin_memory)
    tensor, pinned = paddle.to_tensor(np.arange(6).reshape(2, 3)).astype(dtype), []
    copy = internals.in_pinned_memory(tensor)
    assert copy.data_ptr() == pinned[0].data_ptr() != tensor.data_ptr()
    pinned.clear()
    gc.collect()
    [paddle.full([2, 3], 7, "int32") for _ in range(50)]  # would be written where it was
    assert copy.place.is_cpu_place() and copy.dtype == tensor.dtype and copy.shape == [2, 3]
    assert copy.astype("float32").flatten().tolist() == list(range(6))
    assert internals.in_pinned_memory(paddle.empty([0])).shape == [0]


def test_memory_is_shared_and_freed():
    tensor, slot = paddle.arange(4, dtype="float64"), paddle.zeros([4], "float32")
    same = slot
    internals.share_memory(tensor, slot)
    tensor[0] = 7.0
    assert same is slot and slot.dtype == paddle.float64 and slot.tolist() == [7, 1, 2, 3]
    internals.free_memory(slot)
    assert not slot._is_initialized() and tensor.tolist() == [7, 1, 2, 3]


@pytest.mark.parametrize("dtype, name", [("float32", "float32"), ("uint16", "bfloat16"), ("int8", "int8")])
def test_a_tensor_over_an_array(dtype, name):
    array = np.zeros(3, dtype)
    tensor = internals.tensor_over(array)
    array[1] = 1
    assert str(tensor.dtype) == f"paddle.{name}" and tensor.stop_gradient
    assert tensor.numpy().tolist() == array.tolist()


def test_generators():
    generator = internals.default_cpu_generator()
    state = generator.get_state()
    first = paddle.randn([4])
    generator.set_state(state)
    assert (paddle.randn([4]) == first).all()
    assert internals.default_gpu_generators() == [] or paddle.is_compiled_with_cuda()


def test_layers():
    layer = nn.Linear(2, 2)
    assert not internals.has_hooks(layer)
    hook = layer.register_forward_post_hook(lambda layer, inputs, output: None)
    assert internals.has_hooks(layer)
    hook.remove()
    assert not internals.has_hooks(layer)
    internals.set_layer_dtype(layer, "float64")
    assert "dtype=float64" in layer.extra_repr()
    assert internals.group_norm_settings(nn.GroupNorm(2, 4, epsilon=1e-3)) == (2, 1e-3)
    embedding = nn.Embedding(3, 2)
    internals.set_num_embeddings(embedding, 5)
    assert "5, 2" in embedding.extra_repr()


def test_parameters_without_memory():
    with internals.LazyGuard():
        layer = nn.Linear(2, 2)
    assert not layer.weight._is_initialized() and layer.weight.shape == [2, 2]


def test_autocasting_is_seen():
    assert not internals.is_autocasting()
    tracer = internals._dygraph_tracer()
    level = tracer._amp_level
    tracer._amp_level = internals.core.AmpLevel.O1  # on a CPU auto_cast() itself does nothing on every version
    try:
        assert internals.is_autocasting()
    finally:
        tracer._amp_level = level


def test_a_new_thread_records_gradients():
    seen = {}
    with paddle.no_grad():
        thread = threading.Thread(target=lambda: seen.update(grad=paddle.is_grad_enabled()))
        thread.start()
        thread.join()
        assert seen["grad"] and not paddle.is_grad_enabled()


def test_no_grad_around_calls_that_overlap():
    seen = []

    @internals.no_grad
    def outer(depth):
        seen.append(paddle.is_grad_enabled())
        if depth:
            outer(depth - 1)
        seen.append(paddle.is_grad_enabled())

    outer(2)
    assert seen == [False] * 6 and paddle.is_grad_enabled()


def test_nothing_is_decorated_with_paddles_own_no_grad():
    assert [path for path, source in SOURCES.items() if "@paddle.no_grad" in source] == []


def test_a_tensor_without_memory_takes_what_it_is_given():
    tensor = internals.without_memory([1, 1 << 26, 1 << 10])
    assert list(tensor.shape) == [1, 1 << 26, 1 << 10] and tensor.stop_gradient
    tensor = internals.without_memory([2, 3])
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    internals.share_memory(internals.tensor_over(values), tensor)
    assert tensor.dtype == paddle.float16 and np.array_equal(tensor.numpy(), values)
