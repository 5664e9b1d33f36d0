"""from_pretrained and save_pretrained on a tiny model: exact round trips, strictness, and nothing half-written."""

import json
import os
import pickle

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file

from ppsd3.configuration_utils import register_to_config
from ppsd3.modeling_utils import ModelMixin
from ppsd3.ops import Linear
from ppsd3.serialization import SafetensorsFile
from ppsd3.serialization.tensors import cast
from ppsd3.serialization.writers import write_tensors
from ppsd3.utils.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    WeightMismatchError,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


class Tiny(ModelMixin):
    _keep_in_fp32_modules = ("wo",)
    _keys_to_ignore_on_load = (r"position_ids$",)
    _tied_keys = {"alias.weight": "shared.weight"}
    extra_saved_config = {"architectures": ["Tiny"]}
    ignored_config_keys = ("architectures",)

    @register_to_config
    def __init__(self, width=8, hidden=12):
        super().__init__()
        self.shared = nn.Embedding(5, width)
        self.alias = self.shared
        self.wi, self.wo = Linear(width, hidden), Linear(hidden, width, bias=False)
        self.square = Linear(width, width)
        self.norm, self.conv = nn.LayerNorm(width), nn.Conv2D(3, width, 3)
        self.register_buffer("table", paddle.arange(float(width)).reshape([1, width]))
        self.register_buffer("count", paddle.to_tensor([7], dtype="int64"))
        self.register_buffer("scratch", paddle.arange(3.0), persistable=False)

    def forward(self, ids):
        x = self.norm(self.shared(ids) + self.table)
        return self.wo(nn.functional.gelu(self.wi(self.square(x))))


@pytest.fixture
def model():
    paddle.seed(0)
    model = Tiny()
    model.table.set_value(paddle.rand(model.table.shape))
    return model


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def raw_tensors(path):
    file = SafetensorsFile(path)
    return {name: file.read(name).numpy() for name in file.keys()}


def rewrite(path, change, metadata=None):
    """Applies ``change`` to the dict of arrays in ``path``."""
    tensors = {name: array.copy() for name, array in raw_tensors(path).items()}
    change(tensors)
    tensors = {name: paddle.to_tensor(np.ascontiguousarray(array)) for name, array in tensors.items()}
    with open(path, "wb") as file:
        write_tensors(file, tensors, metadata)


def assert_same(a, b):
    assert set(a.state_dict()) == set(b.state_dict())
    for name, tensor in a.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), b.state_dict()[name].numpy(), err_msg=name)


def files(directory):
    return sorted(os.listdir(directory))


class TestRoundTrip:
    def test_everything_comes_back(self, model, saved):
        loaded = Tiny.from_pretrained(saved)
        assert_same(model, loaded)
        assert loaded.config == model.config
        assert not loaded.training
        np.testing.assert_array_equal(loaded.scratch.numpy(), [0, 1, 2])
        assert loaded.alias.weight is loaded.shared.weight
        ids = paddle.to_tensor([[0, 3]])
        np.testing.assert_array_equal(model(ids).numpy(), loaded(ids).numpy())

    def test_the_reference_reader_agrees(self, model, saved):
        for name, array in load_file(saved / WEIGHTS).items():
            np.testing.assert_array_equal(array, model.state_dict()[name].numpy(), err_msg=name)
        config = json.loads((saved / "config.json").read_text())
        assert config["_class_name"] == "Tiny" and config["architectures"] == ["Tiny"] and config["hidden"] == 12

    def test_subfolder_and_path_types(self, model, tmp_path):
        model.save_pretrained(str(tmp_path / "pipe" / "part"))
        assert_same(model, Tiny.from_pretrained(tmp_path / "pipe", subfolder="part"))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_16_bits(self, model, saved, tmp_path, dtype):
        half = Tiny.from_pretrained(saved, paddle_dtype=dtype)
        assert half.dtype == getattr(paddle, dtype) == half.wi.weight.dtype == half.table.dtype
        assert half.count.dtype == paddle.int64
        half.save_pretrained(tmp_path / "half", variant="fp16")
        again = Tiny.from_pretrained(tmp_path / "half", variant="fp16", paddle_dtype=dtype)
        assert_same(half, again)
        wide = Tiny.from_pretrained(tmp_path / "half", variant="fp16")
        assert wide.dtype == paddle.float32
        expected = cast(model.wi.weight, dtype).cast("float32").numpy()
        np.testing.assert_array_equal(wide.wi.weight.numpy(), expected)

    def test_kept_modules_stay_float32_in_float16_only(self, saved):
        assert Tiny.from_pretrained(saved, paddle_dtype="float16").wo.weight.dtype == paddle.float32
        assert Tiny.from_pretrained(saved, paddle_dtype="bfloat16").wo.weight.dtype == paddle.bfloat16

    def test_shards(self, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size=900)
        assert INDEX in files(tmp_path) and WEIGHTS not in files(tmp_path)
        index = json.loads((tmp_path / INDEX).read_text())
        assert set(index["weight_map"]) == set(model.state_dict()) - {"alias.weight"}
        shards = [name for name in files(tmp_path) if "-of-" in name]
        sizes = [sum(array.nbytes for array in raw_tensors(tmp_path / name).values()) for name in shards]
        assert sum(sizes) == index["metadata"]["total_size"]
        assert len(shards) > 2 and all(size <= 900 for size in sizes)
        assert_same(model, Tiny.from_pretrained(tmp_path))

    def test_sharded_variant_names(self, model, tmp_path):
        model.save_pretrained(tmp_path, variant="fp16", max_shard_size="1.5KB")
        assert "diffusion_pytorch_model.safetensors.index.fp16.json" in files(tmp_path)
        assert any(name.startswith("diffusion_pytorch_model.fp16-00001-of-0000") for name in files(tmp_path))
        assert_same(model, Tiny.from_pretrained(tmp_path, variant="fp16"))

    def test_a_new_save_removes_what_the_old_one_left(self, model, tmp_path):
        model.save_pretrained(tmp_path, variant="fp16")
        model.save_pretrained(tmp_path, max_shard_size=900)
        model.save_pretrained(tmp_path)
        assert files(tmp_path) == ["config.json", "diffusion_pytorch_model.fp16.safetensors", WEIGHTS]

    def test_saving_over_the_file_one_was_loaded_from(self, model, saved):
        loaded = Tiny.from_pretrained(saved)
        loaded.wi.bias.set_value(paddle.ones([12]))
        loaded.save_pretrained(saved)
        assert_same(loaded, Tiny.from_pretrained(saved))

    def test_from_config_is_random(self):
        assert Tiny.from_config({"width": 4, "_class_name": "Tiny"}).wi.weight.shape == [12, 4]


class TestTraining:
    def test_mapped_parameters_train_and_the_file_stays(self, saved):
        before = (saved / WEIGHTS).read_bytes()
        model = Tiny.from_pretrained(saved)
        start = {name: p.numpy().copy() for name, p in model.named_parameters()}
        assert all(not p.stop_gradient and p.trainable and p.is_leaf for p in model.parameters())
        optimizer = paddle.optimizer.AdamW(1e-2, parameters=model.parameters())
        losses = []
        for _ in range(5):
            loss = ((model(paddle.to_tensor([[0, 1, 2]])) - 1) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses.append(float(loss))
        assert losses[-1] < losses[0]
        changed = {name for name, p in model.named_parameters() if (p.numpy() != start[name]).any()}
        assert {"wi.weight", "wo.weight", "shared.weight", "norm.weight"} <= changed
        assert (saved / WEIGHTS).read_bytes() == before
        assert not np.array_equal(Tiny.from_pretrained(saved).wi.weight.numpy(), model.wi.weight.numpy())


class TestDtype:
    def test_to_casts_in_place_and_keeps_identity(self, saved):
        model = Tiny.from_pretrained(saved)
        parameter = model.wi.weight
        assert model.to(paddle.float16) is model
        assert model.wi.weight is parameter and parameter.dtype == paddle.float16 == model.dtype
        assert model.wo.weight.dtype == paddle.float32 and model.count.dtype == paddle.int64
        assert model.to(dtype="float32").dtype == paddle.float32
        assert model.to("cpu").dtype == paddle.float32

    def test_parameter_count_and_device(self, model):
        assert model.num_parameters() == sum(int(np.prod(p.shape)) for p in model.parameters())
        model.wi.weight.stop_gradient = True
        assert model.num_parameters(only_trainable=True) == model.num_parameters() - 96
        assert model.device.is_cpu_place()

    @pytest.mark.parametrize("dtype", ["int64", "float17", 3])
    def test_impossible_dtypes(self, saved, dtype):
        with pytest.raises(InputError, match=r"float16|`paddle_dtype` is 3"):
            Tiny.from_pretrained(saved, paddle_dtype=dtype)


class TestPaddleLayout:
    @staticmethod
    def transpose_linears(tensors):
        for name in ("wi.weight", "wo.weight", "square.weight"):
            tensors[name] = tensors[name].T

    @pytest.mark.parametrize("metadata", [None, {"format": "pd"}, {"format": "np"}, {"format": "pt"}])
    def test_shapes_decide(self, model, saved, metadata):
        rewrite(saved / WEIGHTS, self.transpose_linears, metadata)
        assert_same(model, Tiny.from_pretrained(saved))

    def test_torch_layout_in_spite_of_its_metadata(self, model, saved):
        rewrite(saved / WEIGHTS, lambda tensors: None, {"format": "np"})
        assert_same(model, Tiny.from_pretrained(saved))

    @pytest.mark.parametrize(
        "metadata, transposed", [({"format": "pd"}, True), ({"format": "pt"}, False), (None, False)]
    )
    def test_metadata_decides_when_all_are_square(self, tmp_path, metadata, transposed):
        model = Tiny(width=6, hidden=6)
        model.save_pretrained(tmp_path)
        if transposed:
            rewrite(tmp_path / WEIGHTS, self.transpose_linears, metadata)
        else:
            rewrite(tmp_path / WEIGHTS, lambda tensors: None, metadata)
        assert_same(model, Tiny.from_pretrained(tmp_path))

    def test_ppdiffusers_file_name_and_dtype(self, model, saved):
        rewrite(saved / WEIGHTS, self.transpose_linears, {"format": "pd"})
        os.rename(saved / WEIGHTS, saved / "diffusion_paddle_model.safetensors")
        half = Tiny.from_pretrained(saved, paddle_dtype="float16")
        np.testing.assert_array_equal(half.wi.weight.numpy(), model.wi.weight.numpy().astype(np.float16))


class TestTiedKeys:
    @pytest.mark.parametrize("present", [("shared.weight",), ("alias.weight",), ("shared.weight", "alias.weight")])
    def test_either_or_both(self, model, saved, present):
        def change(tensors):
            embedding = tensors.pop("shared.weight")
            tensors.update(dict.fromkeys(present, embedding))

        rewrite(saved / WEIGHTS, change)
        assert_same(model, Tiny.from_pretrained(saved))

    def test_neither(self, saved):
        rewrite(saved / WEIGHTS, lambda tensors: tensors.pop("shared.weight"))
        with pytest.raises(WeightMismatchError, match=r"shared.weight"):
            Tiny.from_pretrained(saved)

    def test_allow_list(self, model, saved):
        rewrite(saved / WEIGHTS, lambda tensors: tensors.update({"text.position_ids": np.arange(3)}))
        assert_same(model, Tiny.from_pretrained(saved))


class TestBadCheckpoints:
    def test_missing_and_unexpected_with_the_nearest_spelling(self, saved):
        rewrite(saved / WEIGHTS, lambda tensors: tensors.update({"norms.weight": tensors.pop("norm.weight")}))
        with pytest.raises(WeightMismatchError) as caught:
            Tiny.from_pretrained(saved)
        message = str(caught.value)
        assert "1 missing" in message and "1 in the checkpoint but not in the model" in message
        assert "norm.weight (nearest on the other side: norms.weight)" in message and str(saved) in message

    def test_only_the_first_five_are_listed(self, saved):
        rewrite(saved / WEIGHTS, lambda tensors: tensors.update({f"x{i}": np.zeros(1) for i in range(9)}))
        with pytest.raises(WeightMismatchError, match="and 4 more"):
            Tiny.from_pretrained(saved)

    def test_wrong_shape_gives_both(self, saved):
        rewrite(saved / WEIGHTS, lambda tensors: tensors.update({"norm.bias": np.zeros(9, np.float32)}))
        with pytest.raises(WeightMismatchError, match=r"norm.bias: checkpoint \[9\], model \[8\]"):
            Tiny.from_pretrained(saved)

    def test_truncated_file(self, saved):
        with open(saved / WEIGHTS, "r+b") as file:
            file.truncate(os.path.getsize(saved / WEIGHTS) - 1)
        with pytest.raises(CheckpointFormatError, match=WEIGHTS):
            Tiny.from_pretrained(saved)

    def test_missing_shard_is_named_before_anything_is_read(self, model, tmp_path, monkeypatch):
        model.save_pretrained(tmp_path, max_shard_size=900)
        shard = [name for name in files(tmp_path) if "-of-" in name][1]
        os.unlink(tmp_path / shard)
        monkeypatch.setattr(SafetensorsFile, "read", lambda *args: pytest.fail("a tensor was read"))
        with pytest.raises(CheckpointNotFoundError, match=shard):
            Tiny.from_pretrained(tmp_path)

    def test_truncated_shard(self, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size=900)
        shard = [name for name in files(tmp_path) if "-of-" in name][-1]
        with open(tmp_path / shard, "r+b") as file:
            file.truncate(os.path.getsize(tmp_path / shard) - 4)
        with pytest.raises(CheckpointFormatError, match=shard):
            Tiny.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        "weight_map, error",
        [
            ({"norm.weight": "../outside.safetensors"}, "outside"),
            ({"no.such": "diffusion_pytorch_model-00001-of-00001.safetensors"}, "no.such"),
            ({}, "weight_map"),
            (["a"], "weight_map"),
        ],
    )
    def test_lying_index(self, saved, weight_map, error):
        os.rename(saved / WEIGHTS, saved / "diffusion_pytorch_model-00001-of-00001.safetensors")
        (saved / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointFormatError, match=error):
            Tiny.from_pretrained(saved)

    def test_wrong_variant_lists_the_right_ones(self, model, saved):
        model.save_pretrained(saved, variant="bf16", max_shard_size=900)
        with pytest.raises(CheckpointNotFoundError, match=r"fp16.*variant=None, variant='bf16'"):
            Tiny.from_pretrained(saved, variant="fp16")
        os.unlink(saved / WEIGHTS)
        with pytest.raises(CheckpointNotFoundError, match="variant='bf16'"):
            Tiny.from_pretrained(saved)

    @pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model_state.pdparams"])
    def test_pickle_only(self, saved, name):
        os.unlink(saved / WEIGHTS)
        (saved / name).write_bytes(pickle.dumps({}))
        with pytest.raises(CheckpointFormatError, match=name + ".*pickle"):
            Tiny.from_pretrained(saved)

    def test_no_weights_at_all(self, saved):
        os.unlink(saved / WEIGHTS)
        with pytest.raises(CheckpointNotFoundError, match="no weights"):
            Tiny.from_pretrained(saved)

    def test_unknown_config_key(self, saved):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, "widht": 8}))
        with pytest.raises(ConfigError, match=r"widht.*config.json.*'width'"):
            Tiny.from_pretrained(saved)

    def test_no_config_and_no_directory(self, saved, tmp_path):
        with pytest.raises(CheckpointNotFoundError, match="transformer"):
            Tiny.from_pretrained(saved, subfolder="transformer")
        with pytest.raises(CheckpointNotFoundError, match="nowhere"):
            Tiny.from_pretrained(tmp_path / "nowhere")


class TestSavingFails:
    @pytest.fixture
    def disk_full(self, monkeypatch):
        """The third tensor that is written meets a full disk."""
        from ppsd3.serialization import writers

        written = []
        real = writers.tensor_bytes

        def full(tensor):
            written.append(tensor)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
            return real(tensor)

        monkeypatch.setattr(writers, "tensor_bytes", full)

    @pytest.mark.parametrize("size", ["10GB", 900])
    def test_nothing_half_written_is_left(self, model, tmp_path, disk_full, size):
        with pytest.raises(OSError, match="No space"):
            model.save_pretrained(tmp_path / "new", max_shard_size=size)
        assert files(tmp_path) == []

    @pytest.mark.parametrize("size", ["10GB", 900])
    def test_the_old_checkpoint_survives(self, model, saved, disk_full, size):
        other = Tiny()
        with pytest.raises(OSError, match="No space"):
            other.save_pretrained(saved, max_shard_size=size)
        assert files(saved) == ["config.json", WEIGHTS]
        assert_same(model, Tiny.from_pretrained(saved))

    def test_too_little_space_is_seen_before_writing(self, model, tmp_path, monkeypatch):
        import shutil

        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(CheckpointError, match="free"):
            model.save_pretrained(tmp_path / "new")
        assert files(tmp_path) == []

    def test_pickles_are_not_written(self, model, tmp_path):
        with pytest.raises(InputError, match="safe_serialization"):
            model.save_pretrained(tmp_path / "new", safe_serialization=False)
        assert files(tmp_path) == []

    @pytest.mark.parametrize("size", ["10 apples", 0, -1, "", True])
    def test_impossible_shard_sizes(self, model, tmp_path, size):
        with pytest.raises(InputError, match="max_shard_size"):
            model.save_pretrained(tmp_path / "new", max_shard_size=size)
        assert files(tmp_path) == []

    def test_directory_is_a_file(self, model, tmp_path):
        (tmp_path / "new").write_text("precious")
        with pytest.raises(InputError, match="is a file"):
            model.save_pretrained(tmp_path / "new")
        assert (tmp_path / "new").read_text() == "precious"


def test_gradient_checkpointing_flag():
    model = Tiny()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing
