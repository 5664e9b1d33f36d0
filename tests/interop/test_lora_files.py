"""LoRA files of the real ppdiffusers act here as there; those saved for it act there as here."""

import numpy as np
import paddle
import pytest
from helpers import loras

import ppsd3

pytestmark = pytest.mark.interop

PROMPT = "a red circle to the left of a blue square"
SQUARE = ["to_q", "to_k", "to_v", "to_out.0"]
BAR = 0.002 / 255


@pytest.fixture(autouse=True)
def with_peft(ppdiffusers, monkeypatch):
    """ppdiffusers has its LoRA of transformers on request (``USE_PEFT_BACKEND``), which it looks up when imported."""
    import ppdiffusers.loaders.lora
    import ppdiffusers.utils.peft_utils

    monkeypatch.setattr(ppdiffusers.loaders.lora, "USE_PEFT_BACKEND", True)
    monkeypatch.setattr(ppdiffusers.utils.import_utils, "_peft_available", True)


def draw(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    channels, side = pipe.transformer.config.in_channels, pipe.transformer.config.sample_size
    latents = paddle.to_tensor(rng.standard_normal((1, channels, side, side)).astype("float32"))
    return pipe(PROMPT, num_inference_steps=4, latents=latents, output_type="np", **options).images


@pytest.fixture
def fresh(ppdiffusers, theirs, tmp_path_factory):
    """Their pipeline with a transformer of its own, to which an adapter may be added."""
    directory = tmp_path_factory.mktemp("fresh")
    theirs.transformer.save_pretrained(str(directory))
    parts = {**theirs.components, "transformer": ppdiffusers.SD3Transformer2DModel.from_pretrained(str(directory))}
    return ppdiffusers.StableDiffusion3Pipeline(**parts)


def trained(pipe, rank, targets):
    """The state of a LoRA added to their transformer, as their training script has it; with random weights."""
    from ppdiffusers.peft import LoraConfig
    from ppdiffusers.peft.utils import get_peft_model_state_dict

    pipe.transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
    )
    rng = np.random.default_rng(rank)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora" in name:
            values = 0.2 * rng.standard_normal(parameter.shape) / parameter.shape[0] ** 0.5
            parameter.set_value(paddle.to_tensor(values.astype("float32")))
    return get_peft_model_state_dict(pipe.transformer)


@pytest.fixture
def width(ours):
    return ours.transformer.config.caption_projection_dim


# Not to_diffusers as wide as the layers: Paddle's layout with torch's name and format, which nothing in the file tells.
FILES = [(how, kind) for how in ("default", "to_diffusers", "pickle") for kind in ("small", "with the feed-forward")]
FILES += [("default", "as wide as the layers"), ("pickle", "as wide as the layers")]


@pytest.mark.parametrize("how, kind", FILES)
def test_theirs(fresh, checkpoint, width, tmp_path, how, kind):
    rank = 4 if kind == "small" else width
    targets = [*SQUARE, "net.0.proj"] if kind == "with the feed-forward" else SQUARE
    before = draw(fresh)
    state = trained(fresh, rank, targets)
    expected = draw(fresh)
    assert np.abs(expected - before).max() > 0.05
    options = {"to_diffusers": {"to_diffusers": True}, "pickle": {"safe_serialization": False}}.get(how, {})
    layers = {key: tensor.numpy() for key, tensor in state.items()} if how == "to_diffusers" else state
    type(fresh).save_lora_weights(str(tmp_path), transformer_lora_layers=layers, **options)
    path = tmp_path
    if how == "pickle":
        path = ppsd3.convert(tmp_path / "paddle_lora_weights.pdparams", tmp_path / "lora.safetensors")
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    pipe.load_lora_weights(path)
    image = draw(pipe, max_sequence_length=fresh.tokenizer_max_length)
    np.testing.assert_allclose(image, expected, rtol=0, atol=BAR)


@pytest.mark.parametrize("rank", [4, "as wide as the layers"])
def test_ours(fresh, checkpoint, width, tmp_path, rank):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    rank = rank if rank == 4 else width
    tensors = loras.low_rank(loras.shapes_of(pipe.transformer, SQUARE), rank)
    tensors = {f"transformer.{key}": 0.3 * value for key, value in tensors.items()}
    alphas = {f"{key[: -len('.lora_A.weight')]}.alpha": np.float32(2 * rank) for key in tensors if "lora_A" in key}
    before = draw(fresh)
    pipe.load_lora_weights({**tensors, **alphas})
    pipe.save_lora_weights(tmp_path, layout="ppdiffusers")
    fresh.load_lora_weights(str(tmp_path))
    expected = draw(pipe, max_sequence_length=fresh.tokenizer_max_length)
    assert np.abs(expected - before).max() > 0.05
    np.testing.assert_allclose(draw(fresh), expected, rtol=0, atol=BAR)
