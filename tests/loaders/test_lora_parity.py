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
