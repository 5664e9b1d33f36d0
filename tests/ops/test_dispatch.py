"""The table of kernels: every entry computes what the definition says, and one setting forces which is used."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

import ppsd3
from ppsd3 import ops
from ppsd3.ops import dispatch, features, settings
from ppsd3.ops.dispatch import TABLE, Implementation
from ppsd3.ops.quantized import _quantize
from ppsd3.utils.errors import ConfigError

ENTRIES = [(row, entry) for row in TABLE.values() for entry in row.implementations[:-1]]


def tensor(*shape, dtype="float32"):
    return paddle.to_tensor(np.random.RandomState(sum(shape)).uniform(-1, 1, shape).astype("float32")).astype(dtype)


def int8(*shape):
    return paddle.to_tensor(np.random.RandomState(0).randint(-127, 128, shape).astype("int8"))


def joint(q, k):
    return [tensor(1, q + i, 2, 32)[:, :q] for i in range(3)] + [tensor(1, k + i, 2, 32)[:, :k] for i in range(3)]


X, W, B = tensor(40, 300), tensor(70, 300), tensor(70)
PICTURE, SAME = tensor(1, 32, 12, 10), (1, 1, 1, 1)
# Operation -> arguments; between them, every entry accepts some.
ARGUMENTS = {
    "gelu": [[X]],
    "exact_gelu": [[X]],
    "quick_gelu": [[X]],
    "softmax": [[X]],
    "layer_norm": [[X]],
    "layer_norm_modulate": [[tensor(2, 5, 8), tensor(2, 8), tensor(2, 8) / 2]],
    "gated_residual": [[tensor(2, 5, 8), tensor(2, 8), tensor(2, 5, 8)]],
    "rms_norm": [[X, tensor(300)]],
    "matmul": [[X, W, False, True], [X, W, False, True, B, True], [X, tensor(300, 70)], [X, tensor(40, 70), True]],
    "linear": [[X, W], [X, W, B]],
    "linear_gelu": [[X, W, B]],
    "attention": [[tensor(1, 40, 2, 32), tensor(1, 200, 2, 32), tensor(1, 200, 2, 32)]],
    "joint_attention": [joint(40, 200)],
    "float16_to_float32": [],  # without a definition: see test_sixteen_bit.py
    "read_floats": [],
    "cast_weight": [[tensor(5, 7, dtype=name), paddle.float32] for name in ("float16", "bfloat16")],
    "quantize": [[X]],
    "quantized_product": [[B, B, dispatch.reference(_quantize)(X), int8(70, 300)]],
    "quantized_linear": [[X, B / 100, B, int8(70, 300), True]],
    "conv2d": [
        [PICTURE, tensor(24, 32, 3, 3), tensor(24), None, 1, SAME],
        [PICTURE, tensor(24, 32, 1, 1), None, tensor(1, 24, 12, 10), 1, (0, 0, 0, 0)],
        [PICTURE, tensor(24, 32, 3, 3), tensor(24), None, 2, (0, 1, 0, 1)],
    ],
    "upsample_conv2d": [[PICTURE, tensor(24, 32, 3, 3), tensor(24), 1, SAME]],
    "patch_tokens": [[PICTURE, nn.Conv2D(32, 8, 2, stride=2)]],
    "group_norm_silu": [[PICTURE, *(lambda norm: (norm.weight, norm.bias, norm))(nn.GroupNorm(4, 32))]],
    "upsample_nearest_2x": [[PICTURE], [tensor(1, 1, 2, 200)]],
    "linear_channels_first": [[tensor(2, 30, 11), tensor(8, 30), tensor(8)]],
}
PLACES = (None, "cpu", "gpu" if paddle.is_compiled_with_cuda() else "cpu")
ENTRIES_HERE = [(row, entry) for row, entry in ENTRIES if entry.place in PLACES and ARGUMENTS[row.name]]
# Largest difference, as a part of the largest result; 2e-6 for all others.
ROUNDED = {"amx bfloat16": 1e-2, "avx512 bfloat16": 1e-2, "strassen": 4e-6, "integers": 1e-2}


def copied(arguments):
    """An implementation may use up what it gets."""
    return [x.clone() if isinstance(x, paddle.Tensor) and not isinstance(x, nn.Layer) else x for x in arguments]


def flat(result):
    """Arrays of a tensor, of several, or of what is rounded to 8 bits."""
    if isinstance(result, (list, tuple)):
        return [x for part in result for x in flat(part)]
    return [result.astype("float32").numpy()] if isinstance(result, paddle.Tensor) else []


def test_every_operation_has_a_definition_that_takes_everything():
    for row in TABLE.values():
        last = row.implementations[-1]
        assert (last.name, last.level) == ("reference", "reference") and last.serves_all() and not last.features
        assert not last.dtypes and last.place is None and last.graphs
        assert len({entry.name for entry in row.implementations}) == len(row.implementations)


@pytest.mark.parametrize("row, entry", ENTRIES, ids=lambda x: x.name)
def test_entries_are_called_as_the_definition_is(row, entry):
    definition = inspect.signature(row.implementations[-1].function).parameters.values()
    for function in filter(None, (entry.function, entry.accepts, entry.pays)):
        parameters = inspect.signature(function).parameters.values()
        if any(p.kind == p.VAR_POSITIONAL for p in parameters):
            continue
        theirs = [(p.name, p.default) for p in parameters][: len(definition)]
        assert theirs == [(p.name, p.default) for p in definition], function


def test_there_are_arguments_for_every_operation():
    assert ARGUMENTS.keys() == TABLE.keys()


@pytest.mark.parametrize("row, entry", ENTRIES_HERE, ids=lambda x: x.name)
@paddle.no_grad()
def test_every_entry_agrees_with_the_definition(row, entry):
    for feature in entry.features:
        if not features.has(feature):
            pytest.skip(features.missing(feature))
    accepted = 0
    for arguments in ARGUMENTS[row.name]:
        if not entry.serves(str(getattr(arguments[0], "dtype", "float32")).split(".")[-1]):
            continue
        if entry.accepts is not None and not entry.accepts(*arguments):
            continue
        ours, expected = (flat(f(*copied(arguments))) for f in (entry.function, row.implementations[-1].function))
        accepted += len(ours)
        if entry.name == "native" and row.name == "quantize":  # rows and columns that nothing reads
            ours[0] = ours[0][: len(expected[0]), : expected[0].shape[1]]
        assert len(ours) == len(expected)
        for x, y in zip(ours, expected):
            assert x.shape == y.shape
            bar = 1 if row.name == "quantize" and y is expected[0] else ROUNDED.get(entry.name, 2e-6) * np.abs(y).max()
            assert np.abs(x - y).max() <= bar  # a number on the edge of two 8-bit ones may go to either
    assert accepted


class TestSettings:
    def chosen(self, name="gelu"):
        return dispatch.choose(name, *ARGUMENTS[name][0]).level

    def test_each_level_uses_what_comes_before_it_too(self):
        names = ("layer_norm_modulate", "exact_gelu", "patch_tokens")
        for level, expected in {
            "reference": ("reference", "reference", "reference"),
            "paddle": ("paddle", "reference", "paddle"),
            "onednn": ("paddle", "onednn" if features.has("onednn") else "reference", "paddle"),
        }.items():
            with ops.use_kernels(level):
                assert tuple(map(self.chosen, names)) == expected

    @pytest.mark.skipif(not features.has("kernels"), reason="no native kernels here")
    def test_use_native_as_a_statement_and_as_a_context(self):
        ops.use_native(False)
        try:
            assert self.chosen() != "native"
            with ops.use_native(True):
                assert self.chosen() == "native"
            assert self.chosen() != "native"
        finally:
            ops.use_native(True)
        assert self.chosen() == "native"

    def test_a_change_of_one_setting_leaves_the_others(self):
        with ops.use_kernels("paddle"):
            with ops.float32_matmul_precision("highest"):
                ops.use_kernels("onednn")
            assert settings.current().level == "onednn" and settings.current().precision == "high"
        assert settings.current() == settings.Settings(settings.current().level)

    @paddle.no_grad()
    def test_an_entry_is_forced_where_it_does_not_pay_but_not_where_it_cannot(self):
        x = tensor(1, 1, 2, 200)
        assert dispatch.choose("upsample_nearest_2x", x).name == "copies"
        with ops.use_kernels(upsample_nearest_2x="gemm"):
            assert dispatch.choose("upsample_nearest_2x", x).name == "gemm"
            assert dispatch.choose("upsample_nearest_2x", x.astype("float16")).name == "copies"

    def test_what_is_not_known_is_refused(self):
        for wrong in ({"level": "cuda"}, {"gelus": "native"}, {"gelu": "amx"}):
            with pytest.raises(ConfigError, match="Choose one of"):
                ops.use_kernels(**wrong)
        assert settings.current().forced == ()

    def test_the_environment_variable(self):
        def level(value):
            environment = {**os.environ, "PPSD3_KERNELS": value, "PYTHONPATH": os.pathsep.join(sys.path)}
            code = "from ppsd3.ops import settings; print(settings.current().level)"
            return subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
            )

        assert level("paddle").stdout.strip() == "paddle"
        assert "PPSD3_KERNELS is 'fast'" in level("fast").stderr


class TestTable:
    @pytest.fixture
    def row(self, monkeypatch):
        row = TABLE["layer_norm"]
        monkeypatch.setattr(row, "implementations", row.implementations)
        yield row
        row._candidates = {}

    def test_an_added_entry_comes_first_where_its_dtype_is(self, row):
        row.add(Implementation("half", "paddle", lambda x, epsilon=1e-6: "half", dtypes=("bfloat16",)))
        assert ops.layer_norm(X.astype("bfloat16")) == "half"
        assert isinstance(ops.layer_norm(X), paddle.Tensor)
        with ops.use_kernels("reference"):
            assert dispatch.choose("layer_norm", X.astype("bfloat16")).name == "reference"

    def test_an_entry_without_gradients_is_left_out_where_one_is_recorded(self, row):
        row.add(Implementation("plain", "paddle", lambda x, epsilon=1e-6: "plain", gradients=False))
        x = X.clone()
        assert ops.layer_norm(x) == "plain"
        x.stop_gradient = False
        assert isinstance(ops.layer_norm(x), paddle.Tensor)
        with paddle.no_grad():
            assert ops.layer_norm(x) == "plain"

    def test_the_summary_says_what_is_used_and_why_not_another(self, monkeypatch):
        shown = "\n".join(dispatch.summary())
        assert all(re.search(rf"\b{name}\b", shown) for name in TABLE)
        with ops.use_kernels("paddle"):
            shown = "\n".join(dispatch.summary())
        assert re.search(r"attention: heads split  \(turned off by use_kernels\('paddle'\): amx, native\)", shown)
        monkeypatch.setattr(features, "missing", {"amx": "no tiles here"}.get)
        assert re.search(r"attention: native > heads split  \(no tiles here: amx\)", "\n".join(dispatch.summary()))


def test_features_are_tested_in_one_place():
    """Nothing of ``ops`` but the table and its features asks what the machine has or where a tensor is."""
    folder = Path(ppsd3.__file__).parent / "ops"
    tests = re.compile(r"hasattr\(lib|is_amd|has_amx|amx_ready|is_cpu_place|is_gpu_place|\.status\(\)")
    found = {
        path.relative_to(folder).as_posix(): tests.findall(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.py")
        if path.name not in ("dispatch.py", "features.py", "prototypes.py")
    }
    assert len(found) > 15 and not any(found.values()), found
