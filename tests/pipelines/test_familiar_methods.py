"""Methods that programs for diffusers and ppdiffusers call: they act, change nothing, or say what to use."""

import copy

import numpy as np
import pytest
from helpers import tiny

import ppsd3
from ppsd3 import StableDiffusion3Pipeline, TorchGenerator
from ppsd3.utils import logging
from ppsd3.utils.errors import CheckpointNotFoundError, InputError, UnknownNameError


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def draw(pipe, **options):
    settings = {"num_inference_steps": 2, "generator": TorchGenerator(0), "output_type": "np", **options}
    return pipe("a red circle", **settings).images


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("enable_xformers_memory_efficient_attention", ["cutlass"]),
        ("disable_xformers_memory_efficient_attention", []),
        ("enable_attention_slicing", ["max"]),
        ("disable_attention_slicing", []),
        ("maybe_free_model_hooks", []),
        ("enable_lora_hotswap", []),
    ],
)
def test_it_changes_nothing(pipe, method, arguments):
    before = draw(pipe)
    assert getattr(pipe, method)(*arguments) is None
    assert np.array_equal(draw(pipe), before)


def test_fused_projections():
    pipe = tiny.make_pipeline()
    before = draw(pipe)
    pipe.fuse_qkv_projections()
    assert any(getattr(layer, "_fused", None) is not None for layer in pipe.transformer.sublayers())
    assert np.abs(draw(pipe) - before).max() < 1e-4
    pipe.unfuse_qkv_projections()
    assert np.array_equal(draw(pipe), before)


def test_what_it_was_loaded_from(tiny_checkpoint):
    assert StableDiffusion3Pipeline.from_pretrained(tiny_checkpoint).name_or_path == str(tiny_checkpoint)
    assert tiny.make_pipeline().name_or_path == ""


def test_arrays_to_pictures(pipe):
    array = np.random.default_rng(0).random((2, 8, 9, 3))
    pictures = pipe.numpy_to_pil(array)
    assert [picture.size for picture in pictures] == [(9, 8)] * 2
    assert np.array_equal(np.asarray(pipe.numpy_to_pil(array[1])[0]), np.asarray(pictures[1]))


def test_lora_scale_is_the_calls(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(pipe.lora_scale)
        return {}

    draw(pipe, joint_attention_kwargs={"scale": 1.0}, callback_on_step_end=callback)
    assert seen == [1.0, 1.0]
    assert tiny.make_pipeline().lora_scale == 1.0


def test_inputs_are_checked_as_by_the_call(pipe):
    pipe.check_inputs("a", None, None, 64, 64, max_sequence_length=77)
    for arguments, options, message in (
        (("a", None, None, 66, 64), {}, "Use 64 or"),
        ((None,), {}, "prompt"),
        (("a",), {"callback_on_step_end_tensor_inputs": ["nothing"]}, "nothing"),
        (("a",), {"max_sequence_length": 999}, "512"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.check_inputs(*arguments, **options)


def test_download(tiny_checkpoint):
    assert StableDiffusion3Pipeline.download(tiny_checkpoint) == str(tiny_checkpoint)
    with pytest.raises(CheckpointNotFoundError):
        StableDiffusion3Pipeline.download("nobody/nothing", local_files_only=True)


def test_square_tiles(pipe):
    pipe.enable_vae_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
    assert pipe.vae.tile_sample_min_size == 32 and pipe.vae.use_tiling
    with pytest.raises(InputError, match="square"):
        pipe.enable_vae_tiling(tile_sample_min_height=32, tile_sample_min_width=64)
    pipe.disable_vae_tiling()


def test_progress_bars_of_all_pipelines(pipe, capsys):
    try:
        logging.disable_progress_bar()
        draw(pipe)
        assert not logging.is_progress_bar_enabled() and "it/s" not in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=False)
        draw(pipe)
        assert "2/2" in capsys.readouterr().err
    finally:
        logging.enable_progress_bar()
        pipe.set_progress_bar_config()


@pytest.mark.parametrize("name", ["enable_freeu", "enable_group_offload", "push_to_hub", "set_lora_device", "unet"])
def test_what_is_refused_says_what_to_use(pipe, name):
    assert not hasattr(pipe, name)
    with pytest.raises(UnknownNameError, match=rf"StableDiffusion3Pipeline has no attribute '{name}'\. \w+.*\."):
        getattr(pipe, name)


def test_attributes_of_networks(pipe):
    with pytest.raises(UnknownNameError, match=r"ppsd3\.ops\.use_kernels"):
        pipe.transformer.set_attention_backend("flash")
    with pytest.raises(AttributeError, match="Did you mean 'attn_processors'"):
        _ = pipe.transformer.atn_processors
    assert not hasattr(pipe.vae, "enable_freeu") and pipe.vae.decoder is not None


def test_copies_are_not_in_the_way(pipe):
    assert copy.copy(pipe).transformer is pipe.transformer
    tokenizer = copy.deepcopy(pipe.tokenizer)
    assert np.array_equal(tokenizer("a").input_ids, pipe.tokenizer("a").input_ids)


def test_casting_to_the_dtype_that_the_model_has():
    transformer = tiny.make_pipeline().transformer
    with pytest.raises(InputError, match="compute_dtype"):
        transformer.enable_layerwise_casting(storage_dtype="float16", compute_dtype="bfloat16")
    assert transformer.enable_layerwise_casting("float16", compute_dtype="float32").storage_dtype is not None


def test_timesteps_of_a_call(pipe):
    """As sigmas in units of 1000, but that the scheduler shifts the sigmas alone."""
    whole = draw(pipe, timesteps=[1000.0, 600.0, 200.0])
    pipe.scheduler.set_timesteps(timesteps=[1000.0, 600.0, 200.0])
    assert pipe.scheduler.timesteps.tolist() == [1000.0, 600.0, 200.0]
    steps = []
    draw(pipe, timesteps=[1000.0, 600.0, 200.0], callback_on_step_end=lambda *a: steps.append(float(a[2])) or {})
    assert steps == [1000.0, 600.0, 200.0]
    both = draw(pipe, timesteps=[1000.0, 600.0, 200.0], sigmas=[1.0, 0.6, 0.2])
    assert np.array_equal(whole, both)
    for wrong, message in (
        ({"timesteps": ["a"]}, "has to be a number"),
        ({"sigmas": [[1.0]]}, "has to be a number"),
        ({"timesteps": []}, "at least 1"),
        ({"timesteps": [1000.0], "sigmas": [1.0, 0.5]}, "one number of steps"),
    ):
        with pytest.raises(InputError, match=message):
            draw(pipe, **wrong)
    other = StableDiffusion3Pipeline(
        **{**pipe.components, "scheduler": ppsd3.UniPCMultistepScheduler.from_config(pipe.scheduler.config)}
    )
    with pytest.raises(InputError, match="takes no `timesteps`"):
        draw(other, timesteps=[1000.0, 500.0])


def test_switches_of_other_libraries():
    """What turns something on as it is here is taken; what would turn it off, or do it in another way, is refused."""
    pipe = tiny.make_pipeline()
    pipe.vae.enable_tiling(use_tiling=True)
    assert pipe.vae.use_tiling
    pipe.unload_lora_weights(reset_to_overwritten_params=False)
    pipe.transformer.enable_gradient_checkpointing(gradient_checkpointing_func=None)
    assert pipe.transformer.is_gradient_checkpointing
    pipe.transformer.train(True)
    assert pipe.transformer.training
    pipe.transformer.train(False)
    assert not pipe.transformer.training
    for call, message in (
        (lambda: pipe.vae.enable_tiling(use_tiling=False), "disable_tiling"),
        (lambda: pipe.transformer.enable_gradient_checkpointing(gradient_checkpointing_func=print), "Paddle's own"),
        (lambda: pipe.enable_model_cpu_offload(gpu_id=0, device="gpu"), "one of the two"),
        (lambda: pipe.enable_sequential_cpu_offload(gpu_id=99), "gpu:99"),
        (lambda: pipe.text_encoder([[1, 2]], attention_mask=[[1, 0]]), "attention_mask"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    ids = np.array([[519, 3, 520]])
    plain, masked = (pipe.text_encoder(ids, attention_mask=mask).text_embeds.numpy() for mask in (None, [[1, 1, 1]]))
    assert np.array_equal(plain, masked)
    with pytest.raises(UnknownNameError, match="scale_noise"):
        pipe.scheduler.add_noise()
    assert pipe.tokenizer.add_tokens("<cat>") == 1 and pipe.tokenizer.has_token("<cat>")
