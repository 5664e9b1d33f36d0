"""A pipeline with a LoRA draws what diffusers draws from the weights with ``scale * B A`` added."""

import numpy as np
import pytest
from helpers import loras

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers
from helpers import reference

import ppsd3

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    reference.write_checkpoint(directory)
    return directory


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("fused", [False, True])
def test_pictures(checkpoint, scale, fused):
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    ours = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    tensors = loras.for_pipeline(ours)
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        loras.merge_torch(getattr(theirs, name), loras.part(tensors, name), scale)
    ours.load_lora_weights(tensors)
    kwargs = {"joint_attention_kwargs": {"scale": scale}}
    if fused:
        ours.fuse_lora(lora_scale=scale)
        kwargs = {}
    settings = {
        "prompt": "a red circle to the left of a blue square",
        "num_inference_steps": 4,
        "height": 64,
        "width": 64,
    }
    pictures = []
    for pipe, generator, own in (
        (ours, ppsd3.TorchGenerator(3), kwargs),
        (theirs, torch.Generator("cpu").manual_seed(3), {}),
    ):
        pipe.set_progress_bar_config(disable=True)
        pictures.append(np.asarray(pipe(**settings, generator=generator, **own).images[0]).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_what_we_save_diffusers_reads(checkpoint, tmp_path):
    ours = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    tensors = loras.for_pipeline(ours)
    ours.load_lora_weights(tensors, adapter_name="a")
    ours.save_lora_weights(tmp_path, "a")
    state, metadata = diffusers.StableDiffusion3Pipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    assert set(state) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(state[key].numpy(), value)
    assert metadata["transformer.r"] == 3 and metadata["text_encoder.lora_alpha"] == 3


def changes_of_everything(ours):
    """(tensors of a file, (network, name) -> change): what no product of a LoRA reaches, computed by numpy."""
    from ppsd3.adapters.network import adaptable_layers
    from ppsd3.ops import base_of

    rng, tensors, changes = np.random.default_rng(5), {}, {}
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        for module, layer in adaptable_layers(getattr(ours, name)).items():
            weight, bias = base_of(layer).weight, getattr(base_of(layer), "bias", None)
            key, change = f"{name}.{module}", loras.normal(rng, *weight.shape, gain=0.02)
            if module == "pos_embed.proj":
                down, up = loras.normal(rng, 3, *weight.shape[1:]), loras.normal(rng, weight.shape[0], 3, 1, 1)
                tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
                tensors[f"{key}.alpha"] = np.float32(6)
                change = 2 * np.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
            else:
                tensors[f"{key}.diff"] = change
            changes[name, f"{module}.weight"] = change
            if bias is not None:
                changes[name, f"{module}.bias"] = tensors[f"{key}.diff_b"] = loras.normal(rng, *bias.shape, gain=0.02)
    return tensors, changes


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_changes_of_every_layer(checkpoint, scale):
    """Linear layers beside attention, the convolution of the patches, norms and biases."""
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    ours = ppsd3.StableDiffusion3Pipeline.from_pretrained(checkpoint)
    tensors, changes = changes_of_everything(ours)
    ours.load_lora_weights(tensors)
    ours.set_adapters("default_0", scale)
    with torch.no_grad():
        for (name, key), change in changes.items():
            state = getattr(theirs, name).state_dict()
            state[key] += scale * torch.from_numpy(np.asarray(change, "float32"))
    settings = {"prompt": "a red circle", "num_inference_steps": 4, "height": 64, "width": 64}
    pictures = []
    for pipe, generator in ((ours, ppsd3.TorchGenerator(3)), (theirs, torch.Generator("cpu").manual_seed(3))):
        pipe.set_progress_bar_config(disable=True)
        pictures.append(np.asarray(pipe(**settings, generator=generator).images[0]).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
