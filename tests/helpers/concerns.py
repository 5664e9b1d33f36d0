"""What every pipeline has to hold, one mixin for each concern. (After the census of diffusers' own common tests.)

A class that mixes them in has the fixture ``pipe`` and the method ``inputs()``: the task's own arguments.
"""

import numpy as np
import paddle
import pytest

from ppsd3 import DiffusionPipeline, TorchGenerator
from ppsd3.pipelines.residency import OnDemandNetwork
from ppsd3.utils.errors import CheckpointNotFoundError, InputError

from . import loras, tiny
from .device.reads import assert_few_reads
from .gpu_kernels import assert_gpu_computes

PROMPT = "a red circle"
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


class Drawing:
    """How the mixins draw: few steps, one seed."""

    def draw(self, pipe, **changes):
        settings = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "np", "generator": TorchGenerator(3)}
        images = pipe(**{**settings, **self.inputs(), **changes})
        images = images.images if hasattr(images, "images") else images[0]
        return images.numpy() if isinstance(images, paddle.Tensor) else np.asarray(images)

    @staticmethod
    def copy(pipe, **components):
        """A pipeline of the same networks, whose own settings can be changed."""
        made = type(pipe).from_pipe(pipe, **components)
        made.set_progress_bar_config(disable=True)
        return made


class Saving(Drawing):
    def test_saved_and_loaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        for load_components in ("all", "on_demand"):
            again = DiffusionPipeline.from_pretrained(tmp_path, load_components=load_components)
            assert type(again) is type(pipe)
            again.set_progress_bar_config(disable=True)
            assert np.array_equal(self.draw(again), self.draw(pipe))
        assert isinstance(again.transformer, OnDemandNetwork)

    def test_variants(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, variant="fp16")
        again = type(pipe).from_pretrained(tmp_path, variant="fp16")
        again.set_progress_bar_config(disable=True)
        assert np.array_equal(self.draw(again), self.draw(pipe))
        with pytest.raises(CheckpointNotFoundError, match="fp16"):
            type(pipe).from_pretrained(tmp_path)

    def test_optional_components(self, pipe, tmp_path):
        """Without T5, as it is most often loaded, and without any tower."""
        without_t5 = self.copy(pipe, text_encoder_3=None, tokenizer_3=None)
        without_t5.save_pretrained(tmp_path)
        again = type(pipe).from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert again.text_encoder_3 is None and again.tokenizer_3 is None
        drawn = self.draw(again)
        assert np.array_equal(drawn, self.draw(without_t5)) and not np.allclose(drawn, self.draw(pipe), atol=1e-3)
        texts = pipe.encode_prompt(PROMPT, None, None)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        bare = self.copy(pipe, **dict.fromkeys(TEXTS))
        np.testing.assert_allclose(self.draw(bare, prompt=None, **dict(zip(names, texts))), self.draw(pipe), atol=1e-4)

    def test_weights_in_16_bits(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        again = type(pipe).from_pretrained(tmp_path, storage_dtype="float16")
        again.set_progress_bar_config(disable=True)
        drawn = self.draw(again)
        assert 0 < np.abs(drawn - self.draw(pipe)).mean() < 0.01


class Components(Drawing):
    def test_components_make_the_pipeline_again(self, pipe):
        again = type(pipe)(**pipe.components)
        again.set_progress_bar_config(disable=True)
        assert np.array_equal(self.draw(again), self.draw(pipe))

    def test_to(self, pipe):
        """Every network changes its dtype where it is, and back, without a loss on the way through float64."""
        expected, home = self.draw(pipe), pipe.device

        def dtypes():
            networks = (part for part in pipe.components.values() if isinstance(part, paddle.nn.Layer))
            return {parameter.dtype for network in networks for parameter in network.parameters()} | {pipe.dtype}

        try:
            assert pipe.to("cpu", "float64") is pipe
            assert dtypes() == {paddle.float64} and pipe.device.is_cpu_place()
        finally:
            pipe.to(home, "float32")
        assert dtypes() == {paddle.float32}
        assert np.array_equal(self.draw(pipe), expected)

    def test_offloading_needs_a_gpu(self, pipe):
        for method in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
            with pytest.raises(InputError, match="GPU"):
                getattr(self.copy(pipe), method)()


class Batches(Drawing):
    def test_a_batch_is_its_pictures(self, pipe):
        generators = [TorchGenerator(1), TorchGenerator(2)]
        both = self.draw(pipe, prompt=[PROMPT, "a star"], generator=generators, **self.batch_inputs())
        for i, prompt in enumerate([PROMPT, "a star"]):
            alone = self.draw(pipe, prompt=prompt, generator=TorchGenerator(i + 1))
            assert np.abs(both[i] - alone[0]).max() < 1e-4

    @pytest.mark.parametrize("prompts", [1, 2])
    @pytest.mark.parametrize("copies", [1, 2])
    def test_numbers_of_pictures(self, pipe, prompts, copies):
        drawn = self.draw(pipe, prompt=[PROMPT] * prompts, num_images_per_prompt=copies)
        assert drawn.shape == (prompts * copies, tiny.SIDE, tiny.SIDE, 3)
        assert np.isfinite(drawn).all() and drawn.std() > 0.05

    def test_same_seed_same_picture(self, pipe):
        assert np.array_equal(self.draw(pipe), self.draw(pipe))
        assert not np.array_equal(self.draw(pipe), self.draw(pipe, generator=TorchGenerator(4)))


class Outputs(Drawing):
    def test_tuple_and_output(self, pipe):
        assert np.array_equal(self.draw(pipe), self.draw(pipe, return_dict=False))

    def test_types_of_pictures(self, pipe):
        array = self.draw(pipe)
        assert np.abs(np.moveaxis(self.draw(pipe, output_type="pt"), 1, -1) - array).max() < 1e-6
        assert np.abs(self.draw(pipe, output_type="pil") - np.rint(array * 255)).max() <= 1
        assert self.draw(pipe, output_type="latent").shape == (1, 4, 16, 16)


class Guidance(Drawing):
    def test_guidance_acts(self, pipe):
        assert np.abs(self.draw(pipe) - self.draw(pipe, guidance_scale=1.0)).max() > 1e-2

    def test_prompts_act(self, pipe):
        for change in ({"prompt": "a star"}, {"negative_prompt": "blue"}):
            assert np.abs(self.draw(pipe) - self.draw(pipe, **change)).max() > 1e-2

    def test_a_callback_changes_guidance(self, pipe):
        scales = []

        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale = 1.5
            scales.append(pipe.guidance_scale)
            return {}

        drawn = self.draw(pipe, num_inference_steps=3, callback_on_step_end=callback)
        assert scales == [1.5] * len(scales) and len(scales) >= 2
        assert np.abs(drawn - self.draw(pipe, num_inference_steps=3)).max() > 1e-3


class Callbacks(Drawing):
    def test_they_see_what_they_ask_for(self, pipe):
        names, seen = pipe._callback_tensor_inputs[:3], []
        assert names == ["latents", "prompt_embeds", "pooled_prompt_embeds"]

        def callback(pipe, step, timestep, tensors):
            seen.append(sorted(tensors))
            return tensors

        drawn = self.draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
        assert seen and all(found == sorted(names) for found in seen)
        assert np.array_equal(drawn, self.draw(pipe))

    def test_the_negative_halves(self, pipe):
        """They are seen, and what is returned for them takes their place."""
        names = ["negative_prompt_embeds", "negative_pooled_prompt_embeds"]

        def same(pipe, step, timestep, tensors):
            both = tensors["prompt_embeds"]
            assert np.array_equal(tensors[names[0]].numpy(), both.chunk(2)[0].numpy())
            return tensors

        def others(pipe, step, timestep, tensors):
            return {name: tensors[name] * 0.1 for name in names}

        options = {"num_inference_steps": 3, "callback_on_step_end_tensor_inputs": ["prompt_embeds", *names]}
        unchanged = self.draw(pipe, callback_on_step_end=same, **options)
        assert np.array_equal(unchanged, self.draw(pipe, num_inference_steps=3))
        assert np.abs(unchanged - self.draw(pipe, callback_on_step_end=others, **options)).max() > 1e-4

        def too_many(pipe, step, timestep, tensors):
            return {names[0]: tensors["prompt_embeds"]}

        with pytest.raises(InputError, match="negative_prompt_embeds"):
            self.draw(pipe, callback_on_step_end=too_many, **options)

    def test_zeroed_latents_end_as_zeros(self, pipe):
        def callback(pipe, step, timestep, tensors):
            last = step == pipe.num_timesteps - 1
            return {"latents": paddle.zeros_like(tensors["latents"])} if last else {}

        assert not self.draw(pipe, callback_on_step_end=callback, output_type="latent").any()

    def test_interruption(self, pipe):
        steps = []

        def callback(pipe, step, timestep, tensors):
            steps.append(step)
            pipe._interrupt = True
            return {}

        self.draw(pipe, num_inference_steps=4, callback_on_step_end=callback)
        assert steps == [0]


class Text(Drawing):
    def test_encoding_in_isolation(self, pipe):
        """Towers alone make embeddings, and a pipeline without towers draws from them."""
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        found = pipe.encode_prompt([PROMPT, "a star"], None, None, negative_prompt="blue", num_images_per_prompt=1)
        expected = self.draw(pipe, prompt=[PROMPT, "a star"], negative_prompt="blue")
        drawn = self.draw(pipe, prompt=None, **dict(zip(names, found)))
        assert np.abs(drawn - expected).max() < 1e-4


class Latents(Drawing):
    def test_latents_in(self, pipe):
        shape = [1, 4, 16, 16]
        drawn = [
            self.draw(pipe, **self.latents_inputs(paddle.to_tensor(TorchGenerator(seed).randn(shape))))
            for seed in (1, 1, 2)
        ]
        assert np.array_equal(drawn[0], drawn[1]) and np.abs(drawn[0] - drawn[2]).max() > 1e-3

    def batch_inputs(self):
        """What a call with a generator for each of two images takes beside ``inputs``."""
        return {}

    def latents_inputs(self, latents):
        """What a call takes latents with."""
        return {"latents": latents}


class Attention(Drawing):
    def test_fused_projections(self, pipe):
        expected = self.draw(pipe)
        pipe.transformer.fuse_qkv_projections()
        fused = self.draw(pipe)
        pipe.transformer.unfuse_qkv_projections()
        assert np.abs(fused - expected).max() < 1e-3
        assert np.array_equal(self.draw(pipe), expected)


class Lora(Drawing):
    def test_lora_set(self, pipe, tmp_path):
        """Loaded, scaled, fused, unfused, saved, unloaded."""
        plain = self.draw(pipe)
        pipe.load_lora_weights(loras.for_pipeline(pipe), adapter_name="a")
        try:
            whole = self.draw(pipe)
            assert np.abs(whole - plain).max() > 1e-3
            none = self.draw(pipe, joint_attention_kwargs={"scale": 0.0})
            assert np.abs(none - plain).max() < 1e-4
            pipe.set_adapters("a", 0.5)
            half = self.draw(pipe)
            assert np.abs(half - plain).max() > 1e-4 and np.abs(half - whole).max() > 1e-4
            pipe.fuse_lora()
            assert np.abs(self.draw(pipe) - half).max() < 1e-3
            pipe.unfuse_lora()
        finally:
            pipe.unload_lora_weights()
        assert np.abs(self.draw(pipe) - plain).max() < 1e-4


class OnGPUs(Drawing):
    def test_gpus_have_a_kernel_for_each_operator(self, pipe):
        assert_gpu_computes(lambda: self.draw(pipe, num_inference_steps=1, negative_prompt="blue"))

    @pytest.mark.device
    def test_few_reads_of_the_host(self, pipe):
        assert_few_reads(lambda steps: self.draw(pipe, num_inference_steps=steps, negative_prompt="blue"))


class EveryConcern(Saving, Components, Batches, Outputs, Guidance, Callbacks, Text, Latents, Attention, Lora, OnGPUs):
    """All of them."""
