"""Loading and saving whole pipelines."""

import json
import os
import shutil

import numpy as np
import paddle
import pytest
from helpers import tiny

import ppsd3
from ppsd3.utils.errors import (
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    WeightMismatchError,
)


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def edit_index(checkpoint, **entries):
    path = checkpoint / "model_index.json"
    index = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({key: value for key, value in index.items() if value is not ...}))


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 1, "generator": ppsd3.TorchGenerator(0), "output_type": "np"}
    return pipe("a red circle", **arguments).images


# ------------------------------------------------------------------------------------------------------------ loading


def test_round_trip(tiny_checkpoint):
    picture = draw(tiny.make_pipeline())
    for class_ in (ppsd3.DiffusionPipeline, ppsd3.StableDiffusion3Pipeline):
        pipe = class_.from_pretrained(tiny_checkpoint)
        assert type(pipe) is ppsd3.StableDiffusion3Pipeline
        assert np.array_equal(draw(pipe), picture)
    assert not any(part.training for part in pipe.components.values() if hasattr(part, "training"))


def test_index_is_diffusers(tiny_checkpoint):
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline" and index["_diffusers_version"]
    assert index["transformer"] == ["diffusers", "SD3Transformer2DModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["tokenizer_3"] == ["transformers", "T5Tokenizer"]
    assert sorted(os.listdir(tiny_checkpoint)) == sorted([*(k for k in index if k[0] != "_"), "model_index.json"])


@pytest.mark.parametrize("name", ["CLIPTokenizer", "CLIPTokenizerFast"])
@pytest.mark.parametrize("library", ["transformers", "ppdiffusers.transformers", "paddlenlp.transformers"])
def test_names_that_others_write(checkpoint, name, library):
    edit_index(checkpoint, tokenizer=[library, name], tokenizer_3=[library, "T5TokenizerFast"])
    assert isinstance(ppsd3.DiffusionPipeline.from_pretrained(checkpoint).tokenizer, ppsd3.CLIPTokenizer)


def test_dropped_component_is_not_read(checkpoint):
    shutil.rmtree(checkpoint / "text_encoder_3")
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint, text_encoder_3=None, tokenizer_3=None)
    assert pipe.text_encoder_3 is None and draw(pipe).shape == (1, tiny.SIDE, tiny.SIDE, 3)


def test_null_component(checkpoint):
    shutil.rmtree(checkpoint / "text_encoder_3")
    edit_index(checkpoint, text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert ppsd3.DiffusionPipeline.from_pretrained(checkpoint).text_encoder_3 is None


def test_given_component(checkpoint):
    vae = ppsd3.AutoencoderKL(**tiny.VAE)
    assert ppsd3.DiffusionPipeline.from_pretrained(checkpoint, vae=vae).vae is vae


def test_components_are_shared(tiny_checkpoint):
    pipe = ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint)
    other = ppsd3.StableDiffusion3Pipeline(**pipe.components)
    assert other.components == pipe.components and set(pipe.components) >= {"vae", "image_encoder"}
    assert "transformer: SD3Transformer2DModel" in repr(pipe)


def test_dtype(tiny_checkpoint):
    pipe = ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint, paddle_dtype="bfloat16")
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder_3.dtype} == {paddle.bfloat16}
    pipe.to("float32")
    assert pipe.dtype == paddle.float32 == pipe.vae.dtype
    dtypes = {"text_encoder_3": "bfloat16", "default": "float32"}
    pipe = ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint, paddle_dtype=dtypes)
    assert (pipe.text_encoder_3.dtype, pipe.vae.dtype) == (paddle.bfloat16, paddle.float32)


def test_device(tiny_checkpoint):
    pipe = ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint)
    assert pipe.to("cpu") is pipe and pipe.device.is_cpu_place()
    assert pipe.to(device="cpu", dtype=paddle.float32).dtype == paddle.float32


def test_variant(tiny_checkpoint, tmp_path):
    pipe = ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint).to(paddle.float16)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size=4000)
    assert len(list((tmp_path / "transformer").glob("*.fp16-*.safetensors"))) > 1
    with pytest.raises(CheckpointNotFoundError, match="fp16"):
        ppsd3.DiffusionPipeline.from_pretrained(tmp_path)
    loaded = ppsd3.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    name = "proj_out.weight"
    weights = (model.state_dict()[name].astype("float32").numpy() for model in (loaded.transformer, pipe.transformer))
    assert np.array_equal(*weights)


def test_variant_of_some_components(tiny_checkpoint, tmp_path):
    """As published: half precision of the text encoders alone; the others come from their plain weights."""
    pipe = ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint)
    pipe.save_pretrained(tmp_path)
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    pipe.text_encoder.save_pretrained(tmp_path / "text_encoder", variant="fp16")
    loaded = ppsd3.DiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    for name in ("text_encoder", "transformer"):
        before, after = (getattr(p, name).state_dict() for p in (pipe, loaded))
        assert all(np.array_equal(before[key].numpy(), after[key].numpy()) for key in before)
    with pytest.raises(CheckpointNotFoundError, match="bf16"):
        ppsd3.DiffusionPipeline.from_pretrained(tmp_path, variant="bf16")


# -------------------------------------------------------------------------------------------------- damaged checkpoints


def load(checkpoint, **arguments):
    return ppsd3.DiffusionPipeline.from_pretrained(checkpoint, **arguments)


def test_wrong_path(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointNotFoundError, match=r"model_index.json"):
        load(tmp_path)


def test_index_is_no_json(checkpoint):
    (checkpoint / "model_index.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load(checkpoint)


def test_another_pipeline(checkpoint):
    edit_index(checkpoint, _class_name="StableDiffusionXLPipeline")
    for class_ in (ppsd3.DiffusionPipeline, ppsd3.StableDiffusion3Pipeline):
        with pytest.raises(ConfigError, match=r"StableDiffusionXLPipeline.*Stable Diffusion 3"):
            class_.from_pretrained(checkpoint)


def test_unknown_component_class(checkpoint):
    edit_index(checkpoint, vae=["diffusers", "AutoencoderDC"])
    with pytest.raises(ConfigError, match=r"'vae'.*AutoencoderDC.*vae="):
        load(checkpoint)
    assert load(checkpoint, vae=None).vae is None


def test_unknown_component(checkpoint):
    edit_index(checkpoint, unet=["diffusers", "UNet2DConditionModel"])
    with pytest.raises(ConfigError, match="'unet'"):
        load(checkpoint)


def test_malformed_entry(checkpoint):
    edit_index(checkpoint, vae="AutoencoderKL")
    with pytest.raises(ConfigError, match="pair of library"):
        load(checkpoint)


def test_component_that_is_not_listed(checkpoint):
    edit_index(checkpoint, transformer=...)
    with pytest.raises(CheckpointFormatError, match="transformer"):
        load(checkpoint)


def test_unknown_argument(checkpoint):
    with pytest.raises(InputError, match="unet"):
        load(checkpoint, unet=None)
    with pytest.raises(InputError, match=r"Did you mean 'paddle_dtype'\?"):
        load(checkpoint, padle_dtype="float16")


def test_missing_directory(checkpoint, nothing_is_loaded):
    shutil.rmtree(checkpoint / "transformer")
    with pytest.raises(CheckpointNotFoundError, match=r"transformer.*transformer=None"):
        load(checkpoint)


def test_missing_weights(checkpoint, nothing_is_loaded):
    (checkpoint / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="diffusion_pytorch_model"):
        load(checkpoint)


def test_truncated_weights(checkpoint, nothing_is_loaded):
    file = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointFormatError, match=r"diffusion_pytorch_model.safetensors"):
        load(checkpoint)


def test_pickle(checkpoint, nothing_is_loaded):
    directory = checkpoint / "vae"
    (directory / "diffusion_pytorch_model.safetensors").rename(directory / "kept")
    (directory / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointFormatError, match="pickle"):
        load(checkpoint)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fails the test if a network is made before the error shows."""
    from ppsd3.modeling_utils import ModelMixin

    def refuse(*arguments, **options):
        raise AssertionError("a network was loaded before the checkpoint was checked")

    monkeypatch.setattr(ModelMixin, "from_pretrained", classmethod(refuse))


def test_wrong_shapes(checkpoint):
    path = checkpoint / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latent_channels": 8}))
    with pytest.raises(WeightMismatchError, match="conv_in"):
        load(checkpoint)


def test_unknown_key(checkpoint):
    path = checkpoint / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "qk_nrm": "rms_norm"}))
    with pytest.raises(ConfigError, match=r"'qk_nrm'.*'qk_norm'"):
        load(checkpoint)


# ------------------------------------------------------------------------------------------------------------- saving


def test_save_over_itself(checkpoint):
    pipe = load(checkpoint)
    picture = draw(pipe)
    (checkpoint / "vae" / "left_over.txt").write_text("of an earlier save")
    (checkpoint / "README.md").write_text("the user's")
    (checkpoint / "vae" / "README.md").write_text("the user's")
    pipe.save_pretrained(checkpoint)
    assert np.array_equal(draw(pipe), picture) and np.array_equal(draw(load(checkpoint)), picture)
    assert not (checkpoint / "vae" / "left_over.txt").exists()
    assert (checkpoint / "README.md").exists() and (checkpoint / "vae" / "README.md").exists()


def test_failed_save_leaves_nothing(tmp_path):
    pipe = tiny.make_pipeline()

    def fail(*arguments, **options):
        raise OSError("disk full")

    pipe.vae.save_pretrained = fail
    with pytest.raises(OSError, match="disk full"):
        pipe.save_pretrained(tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_failed_save_keeps_what_was_there(checkpoint):
    pipe = load(checkpoint)
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    pipe.scheduler.save_pretrained = None
    with pytest.raises(TypeError, match="not callable"):
        pipe.save_pretrained(checkpoint)
    assert before == {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_save_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        tiny.make_pipeline().save_pretrained(tmp_path / "file")


def test_save_a_component_that_has_no_name(tmp_path):
    pipe = tiny.make_pipeline()
    pipe.tokenizer = object()
    with pytest.raises(InputError, match="'tokenizer' is a object"):
        pipe.save_pretrained(tmp_path / "saved")
    assert os.listdir(tmp_path) == []
