"""Original files mean to us what they mean to diffusers: its own converters, and its own from_single_file."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from helpers import reference, tiny
from helpers.originals import read, single_file, write

import ppsd3

pytestmark = pytest.mark.parity

PROMPT = "a red circle to the left of a blue square"
CALL = {"num_inference_steps": 4, "max_sequence_length": 77}


@pytest.fixture(scope="module", params=["sd3", "sd3.5"])
def made(request, tmp_path_factory):
    """(diffusers' directory, our original file of it)."""
    directory = tmp_path_factory.mktemp("made") / "diffusers"
    reference.write_checkpoint(directory, **(tiny.SD35 if request.param == "sd3.5" else {}))
    return directory, single_file(directory, directory.parent / "sd3.safetensors")


def torch_tensors(file, prefix):
    return {n[len(prefix) :]: torch.from_numpy(v.array) for n, v in read(file).items() if n.startswith(prefix)}


def assert_equal(found, network):
    expected = network.state_dict()
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy(), err_msg=name)


def test_diffusers_converts_the_transformer_back(made):
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    found = convert_sd3_transformer_checkpoint_to_diffusers(torch_tensors(made[1], "model.diffusion_model."))
    assert_equal(found, reference.load(made[0]).transformer)


def test_diffusers_converts_the_vae_back(made):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    pipe = reference.load(made[0])
    tensors = {f"first_stage_model.{n}": t for n, t in torch_tensors(made[1], "first_stage_model.").items()}
    assert_equal(convert_ldm_vae_checkpoint(tensors, dict(pipe.vae.config)), pipe.vae)


@pytest.mark.parametrize("name, class_", [("transformer", "SD3Transformer2DModel"), ("vae", "AutoencoderKL")])
def test_from_single_file_of_one_network(made, name, class_):
    theirs = getattr(diffusers, class_).from_single_file(
        str(made[1]), config=str(made[0]), subfolder=name, local_files_only=True
    )
    ours = getattr(ppsd3, class_).from_single_file(made[1], config=made[0])
    assert_equal(ours.state_dict(), theirs)


def test_the_picture(made):
    """What diffusers' own from_single_file does not load is handed to it: a CLIP-L whose projection is no identity, and
    T5, whose tied embedding it leaves without memory."""
    whole = reference.load(made[0])
    given = {"text_encoder": whole.text_encoder, "text_encoder_3": whole.text_encoder_3}
    theirs = diffusers.StableDiffusion3Pipeline.from_single_file(
        str(made[1]), config=str(made[0]), local_files_only=True, torch_dtype=torch.float32, **given
    )
    theirs.set_progress_bar_config(disable=True)
    ours = ppsd3.StableDiffusion3Pipeline.from_single_file(made[1], config=made[0])
    ours.set_progress_bar_config(disable=True)
    expected = np.asarray(theirs(PROMPT, generator=reference.generator(0), **CALL).images[0], int)
    found = np.asarray(ours(PROMPT, generator=ppsd3.TorchGenerator(0), **CALL).images[0], int)
    assert np.abs(found - expected).max() <= 1


def test_open_clip(tmp_path):
    """A text tower in open_clip's names is what diffusers makes of it."""
    import transformers
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    from ppsd3.serialization import Checkpoint
    from ppsd3.serialization.rearranged import RearrangedCheckpoint
    from ppsd3.serialization.sd3_keys import _OPEN_CLIP, to_original

    config = {**tiny.CLIP_G, **tiny.CLIP_IDS}
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    reference.randomize(model, 3)
    path = write(tmp_path / "hf.safetensors", {n: t.numpy() for n, t in model.state_dict().items()})
    names = [name for name in read(path) if not name.endswith("position_ids")]
    original = RearrangedCheckpoint(Checkpoint.open_file(path), to_original(names, _OPEN_CLIP, "x"))
    arrays = {name: np.array(original.load(name)) for name in original.keys()}
    prefix = "conditioner.embedders.1.model."  # SDXL's, whose projection diffusers reads
    theirs = convert_open_clip_checkpoint(model, {prefix + n: torch.from_numpy(a) for n, a in arrays.items()}, prefix)
    assert_equal(theirs, model)
    ours = ppsd3.CLIPTextModelWithProjection.from_single_file(
        write(tmp_path / "open_clip.safetensors", arrays), config=config, subfolder="text_encoder_2"
    )
    assert_equal(ours.state_dict(), model)
