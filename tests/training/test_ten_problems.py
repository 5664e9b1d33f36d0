"""The ten problems that trackers of other trainers report most: each has a test that fails if this trainer has it."""

import gc
import os
import weakref

import numpy as np
import paddle
import pytest
from helpers.regression import Regression, assert_equal, log_of, train, trainer, weights
from helpers.training_runs import configuration, draw
from PIL import Image

from ppsd3 import FlowMatchEulerDiscreteScheduler, StableDiffusion3ControlNetPipeline, StableDiffusion3Pipeline
from ppsd3.pipelines.stable_diffusion_3.prompt_encoding import TextCondition
from ppsd3.serialization.readers import SafetensorsFile
from ppsd3.training import runs
from ppsd3.training.autoencoder import to_model_range
from ppsd3.training.caches import LatentCache
from ppsd3.training.data.buckets import Crop
from ppsd3.training.log import read_log
from ppsd3.training.option_names import settings_of
from ppsd3.training.runs import TrainingRun
from ppsd3.training.text_to_image import Batch
from ppsd3.utils.errors import ConfigError, NotFiniteError

CONTROLNET = ("method=controlnet", "data.control_column=edges", "controlnet.num_layers=1")


@pytest.fixture
def posterior_means(monkeypatch):
    """Latents are means, so that they can be compared exactly."""
    whole = LatentCache.posterior

    def mean_only(self, key, pixels):
        mean, std = whole(self, key, pixels)
        return mean, 0 * std

    monkeypatch.setattr(LatentCache, "posterior", mean_only)


# 1. The VAE's shift is forgotten: diffusers #8708, #8887, and for ControlNets #11867.


def test_the_vaes_shift_is_not_forgotten(model, data, tmp_path, posterior_means):
    run = TrainingRun(configuration(model, data, tmp_path))
    batch, vae = run.batches(np.random.default_rng(0), 0), run.pipe.vae
    index = int(batch.prompts[0][-1])
    pixels = to_model_range(Crop((64, 64)).apply(run.batches.samples[index].open())[None])
    mean = vae.encode(pixels).latent_dist.mean.numpy()
    assert vae.config.shift_factor != 0
    wanted = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    np.testing.assert_allclose(batch.latents, wanted, atol=1e-5)


@pytest.mark.parametrize("trained_elsewhere", [False, True])
def test_the_vaes_shift_is_not_forgotten_for_the_controlnets_picture(
    model, data, tmp_path, posterior_means, trained_elsewhere
):
    """A ControlNet reads the same latents and the same pooled text in training as in a pipeline. InstantX' ones, which
    a run may go on with, read latents without the shift, and zeros."""
    run = TrainingRun(configuration(model, data, tmp_path / "run", *CONTROLNET))
    if trained_elsewhere:
        run.method.controlnet.register_to_config(force_zeros_for_pooled_projection=True)
        run.method.controlnet.save_pretrained(tmp_path / "net")
        settings = (*CONTROLNET, f"controlnet.from_pretrained={tmp_path / 'net'}")
        run = TrainingRun(configuration(model, data, tmp_path / "run", *settings))
    net, read = run.method.controlnet, []
    net.pos_embed_input.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0].numpy()))
    net.time_text_embed.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[1].numpy()))
    run.task.loss(np.random.default_rng(0), 0)
    training = sorted(read, key=np.ndim, reverse=True)
    caption = run.batches(np.random.default_rng(0), 0).prompts[0]
    edges = Image.fromarray(Crop((64, 64)).apply(run.batches.samples[int(caption[-1])].open_control()))
    read.clear()
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    pipe = StableDiffusion3ControlNetPipeline.from_pipe(pipe, controlnet=net)
    pipe(caption, control_image=edges, height=64, width=64, num_inference_steps=1, guidance_scale=1.0,
         max_sequence_length=5, output_type="latent")  # fmt: skip
    for trained, drawn in zip(training, sorted(read, key=np.ndim, reverse=True)):
        np.testing.assert_allclose(trained, drawn, atol=1e-4)
    assert training[1].any() != trained_elsewhere


# 2. Weighting where a density was meant: diffusers #8528, #9056; random numbers as weights in ppdiffusers.


def from_noise(u, name):
    """Times that shares ``u`` from noise to data have, before the shift."""
    if name == "mode":
        return 1 - u - 1.29 * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    from scipy.special import expit, ndtri

    return expit(-ndtri(u))


@pytest.mark.parametrize("name", ["logit_normal", "mode"])
def test_a_density_decides_which_times_are_trained_and_not_how_much_they_weigh(model, data, tmp_path, name):
    found = settings_of({"weighting_scheme": name, "precondition_outputs": 0})
    run = TrainingRun(configuration(model, data, tmp_path, f"flow.density={name}", "data.batch_size=4"))
    loss, metrics = run.task.loss(np.random.default_rng(0), 0)
    assert float(loss) == pytest.approx(metrics["errors"].mean(), rel=1e-6)
    t = run.task.density_for(run.batches(np.random.default_rng(0), 0)).sample(np.random.default_rng(1), 20000)
    shares = np.linspace(0.05, 0.95, 19)
    wanted = from_noise(shares, name)
    np.testing.assert_allclose(np.quantile(t, 1 - shares), 3 * wanted / (1 + 2 * wanted), atol=0.012)
    assert (found["flow.density"], found["flow.weight"]) == (name, "none")


# 3. One shift at all resolutions, or another one in validation: kohya #1762, OneTrainer #615, SimpleTuner #2649.


@pytest.mark.parametrize(
    "settings, config, shifts",
    [
        ((), {}, (3.0, 3.0)),  # as SD3's pipelines sample at all sizes
        (("flow.indexed=true",), {}, (3.0, 3.0)),
        (("flow.shift=2",), {}, (2.0, 2.0)),
        (("flow.shift_by_size=true",), {}, (3.0, 1.5)),
        (("flow.shift_by_size=true", "flow.indexed=true"), {}, (3.0, 1.5)),
        ((), {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64, "base_shift": 0.4,
              "max_shift": 1.0}, (np.exp(1.0), np.exp(0.4))),
    ],
    ids=["models", "models-indexed", "given", "by-size", "by-size-indexed", "dynamic"],
)  # fmt: skip
def test_times_are_shifted_as_each_resolution_is_sampled_in_training_and_in_validation(
    model, data, tmp_path, monkeypatch, settings, config, shifts
):
    def load(configuration):
        pipe = StableDiffusion3Pipeline.from_pretrained(configuration.model)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config({**pipe.scheduler.config, **config})
        return pipe

    monkeypatch.setattr(runs, "_load", load)
    validation = ("validation.prompts=[a circle]", "validation.num_inference_steps=3", "training.validate_every=1")
    for side, shift in zip((64, 32), shifts):
        size = (f"data.resolution={side}", "data.skip_broken=true")
        run = TrainingRun(configuration(model, data, tmp_path / str(side), *settings, *validation, *size))
        latents = np.zeros([1, 4, side // 4, side // 4], "float32")  # 64 tokens are the model's own size
        t = run.task.density_for(Batch(latents, [""])).sample(np.random.default_rng(0), 40001)
        assert np.median(t) == pytest.approx(shift / (1 + shift), abs=0.006)
        asked = []
        run.pipe.transformer.time_text_embed.register_forward_pre_hook(
            lambda layer, inputs, asked=asked: asked.append(inputs[0].numpy())
        )
        run.validate(0)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(3)
        if config:
            scheduler = FlowMatchEulerDiscreteScheduler(**config)
            scheduler.set_timesteps(3, mu=float(np.log(shift)))
        np.testing.assert_allclose(np.unique(np.concatenate(asked))[::-1], scheduler.timesteps.numpy(), rtol=1e-5)
    assert "flow" not in run.task.settings and repr(run.task.configuration)  # a resumed run compares it
    if settings == ("flow.shift_by_size=true",):
        assert "3.0" in run.task.configuration["size_shift"]


# 4. Padding and masks: diffusers #8673; SimpleTuner #1726, where zeros in the place of T5's padding collapse SD3.


def test_text_is_padded_as_pipelines_pad_it_and_never_masked(model, data, tmp_path):
    run = TrainingRun(configuration(model, data, tmp_path, "text.caption_dropout=0.5"))
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    captions = run.batches.captions[:2]
    embeds, negative, pooled, _ = pipe.encode_prompt(captions, None, None, max_sequence_length=5)
    found = run.texts.plain(captions, run.batches.clip_length, run.batches.t5_length)
    np.testing.assert_allclose(found.embeds.numpy(), embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.pooled.numpy(), pooled.numpy(), atol=1e-5)
    dropped = run.texts.plain(["", ""], run.batches.clip_length, run.batches.t5_length)
    np.testing.assert_allclose(dropped.embeds.numpy(), negative.numpy(), atol=1e-5)
    assert np.abs(dropped.embeds.numpy()[:, 78:]).max(-1).min() > 0  # T5's padding says something
    asked = {}
    forward = run.pipe.transformer.forward
    run.pipe.transformer.forward = lambda **inputs: asked.update(inputs) or forward(**inputs)
    run.task.loss(np.random.default_rng(0), 0)
    assert not any("mask" in name or "joint_attention" in name for name in asked)


# 5. NaN: diffusers #8599, kohya #1407.


def test_steps_with_nan_are_skipped_and_counted(tmp_path):
    done = train(tmp_path, task=Regression(bad_batches=range(10, 14)))
    assert done.skipped == 4 and all(np.isfinite(value).all() for value in weights(done).values())
    assert log_of(tmp_path)[1]["skipped"] == 1.0
    assert train(tmp_path).skipped == 4  # a finished run knows it still


def test_a_run_of_nan_stops_and_keeps_its_last_good_state(tmp_path):
    with pytest.raises(NotFiniteError, match=r"5 steps in a row, the last at step 16.*step-00000012"):
        train(tmp_path, task=Regression(bad_batches=range(12, 99)), max_nonfinite_steps=5, save_every=4)
    assert max(os.listdir(tmp_path / "checkpoints")) == "step-00000012"
    whole = train(tmp_path / "whole", max_nonfinite_steps=5, save_every=4)
    assert_equal(train(tmp_path, max_nonfinite_steps=5, save_every=4), whole)


# 6. Cached latents are paired with other pictures' captions under shuffling: diffusers #14430, #12124.


def test_cached_latents_stay_with_their_captions_under_shuffling(model, data, tmp_path, posterior_means):
    orders = []
    for seed in (0, 9):  # the second run reads what the first one has cached, in another order
        settings = ("data.batch_size=2", "data.random_flip=true", f"training.seed={seed}")
        cache = f"data.cache_dir={tmp_path / 'cache'}"
        run = TrainingRun(configuration(model, data, tmp_path / str(seed), cache, *settings))
        order = []
        for number in range(6):
            batch = run.batches(np.random.default_rng(number), number)
            for latents, caption in zip(batch.latents, batch.prompts):
                order.append(int(caption[-1]))
                pixels = to_model_range(Crop((64, 64)).apply(run.batches.samples[order[-1]].open())[None])
                mean = run.pipe.vae.encode(pixels).latent_dist.mean
                np.testing.assert_allclose(latents, run.pipe.vae.scale_latents(mean)[0].numpy(), atol=1e-4)
            texts = run.texts.condition(batch.prompts, np.random.default_rng(0), 77, 5)
            alone = [run.texts.plain([caption], 77, 5) for caption in batch.prompts]
            np.testing.assert_array_equal(texts.embeds.numpy(), TextCondition.cat(alone).embeds.numpy())
        orders.append(order)
    assert orders[0] != orders[1] and orders[0][:4] != orders[0][4:8]


# 7. Updates vanish in bfloat16 without float32 weights: OneTrainer #996, #1005.


def test_bfloat16_weights_move_by_steps_that_bfloat16_cannot_hold(tmp_path):
    """Trained parameters are float32, whatever they were loaded as, and averages are; so small updates add up."""
    task = Regression()
    task.layers["net"].to(dtype="bfloat16")
    done = trainer(tmp_path, task=task, learning_rate=1e-5, lr_schedule="constant", warmup_steps=0, ema_decay=0.999)
    start = {name: value.copy() for name, value in weights(done).items()}
    done.run()
    for name, value in [("net.weight", weights(done)["net.weight"])]:
        assert value.dtype == np.float32
        moved, large = np.abs(value - start[name]), np.abs(start[name]) > 0.1
        assert 1e-4 < moved[large].max() < 1e-3
        one_step = paddle.to_tensor(start[name] - np.float32(1e-5)).astype("bfloat16").astype("float32").numpy()
        np.testing.assert_array_equal(one_step[large], start[name][large])  # what bfloat16 alone would make of it
        assert done.ema.shadow[name].dtype == paddle.float32
        assert (done.ema.shadow[name].numpy() != start[name]).any()


# 8. A LoRA cannot be resumed, or grows: diffusers #6366, #4936, #3279, #5840.


def test_an_interrupted_lora_goes_on_exactly(model, data, tmp_path):
    settings = ("data.batch_size=2", "data.random_crop=true", "text.caption_dropout=0.3", "lora.dropout=0.2",
                "lora.train_text_encoders=true")  # fmt: skip
    TrainingRun(configuration(model, data, tmp_path / "whole", *settings)).run()
    sizes = set()
    for until in (1, 3, None):
        run = TrainingRun(configuration(model, data, tmp_path / "parts", *settings))
        run.run(until)
        assert run.pipe.get_list_adapters() == {name: ["default"] for name in run.task.layers}
        state = tmp_path / "parts" / "checkpoints" / f"step-{run.trainer.step:08}"
        sizes.add(sum((state / name).stat().st_size for name in ("parameters.safetensors", "optimizer.safetensors")))
        assert set(SafetensorsFile(str(state / "parameters.safetensors")).keys()) == set(run.trainer.parameters)
        assert all("lora" in name for name in run.trainer.parameters)  # what is frozen is in no state
    assert len(sizes) == 1 and len(os.listdir(tmp_path / "parts" / "checkpoints")) == 2
    whole, parts = ((tmp_path / name / "pytorch_lora_weights.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    logs = [read_log(str(tmp_path / name / "log.jsonl")) for name in ("whole", "parts")]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    with pytest.raises(ConfigError, match=r"task.lora is .*alpha=9.*--override"):
        TrainingRun(configuration(model, data, tmp_path / "parts", *settings, "lora.alpha=9")).run()


# 9. T5 is kept in memory while training or validating: diffusers #8540, #11225.


@pytest.mark.parametrize("trained", ["false", "true"])
def test_t5_is_not_in_memory_while_training_and_validating(model, data, tmp_path, monkeypatch, trained):
    networks, kept = {}, {"training": [], "validation": []}

    def load(configuration):
        pipe = StableDiffusion3Pipeline.from_pretrained(configuration.model)
        networks.update({tower: weakref.ref(getattr(pipe, tower)) for tower in runs.TOWERS})
        return pipe

    def watched(when, function):
        def call(*arguments):
            gc.collect()
            kept[when].append([name for name, network in networks.items() if network() is not None])
            return function(*arguments)

        return call

    monkeypatch.setattr(runs, "_load", load)
    validation = ("validation.prompts=[a circle]", "validation.num_inference_steps=1", "training.validate_every=1")
    settings = (*validation, "training.max_steps=1", f"lora.train_text_encoders={trained}")
    run = TrainingRun(configuration(model, data, tmp_path, *settings))
    run.task.loss = watched("training", run.task.loss)
    run.trainer.validate = watched("validation", run.trainer.validate)
    run.run()
    live = ["text_encoder", "text_encoder_2"] if trained == "true" else []
    assert kept == {"training": [live], "validation": [live]}


# 10. Others cannot read the files: ComfyUI #3701.


def test_other_programs_read_the_lora(model, data, tmp_path):
    """Names that diffusers and ComfyUI have for the layers; numbers that mean the same where alpha is not read."""
    settings = ("lora.rank=2", "lora.alpha=6", "lora.train_text_encoders=true")
    run = TrainingRun(configuration(model, data, tmp_path, *settings))
    path = run.run()
    file = SafetensorsFile(path)
    shapes = {name: tuple(file.read(name).shape) for name in file.keys()}
    blocks = [f"transformer.transformer_blocks.{i}.attn" for i in range(3)]
    for block in blocks:
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            assert shapes.pop(f"{block}.{layer}.lora_A.weight") == (2, 32)
            assert shapes.pop(f"{block}.{layer}.lora_B.weight") == (32, 2)
    for tower, width in (("text_encoder", 16), ("text_encoder_2", 12)):
        for i in range(3):
            for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
                name = f"{tower}.text_model.encoder.layers.{i}.self_attn.{layer}"
                assert shapes.pop(f"{name}.lora_A.weight") == (2, width)
                assert shapes.pop(f"{name}.lora_B.weight") == (width, 2)
    assert not shapes
    pipe = StableDiffusion3Pipeline.from_pretrained(model)
    plain = draw(pipe)
    pipe.load_lora_weights({name: file.read(name) for name in file.keys()})  # as readers do that ignore metadata
    run.pipe.text_encoder_3 = pipe.text_encoder_3
    np.testing.assert_allclose(draw(pipe), draw(run.pipe), atol=1e-4)
    assert np.abs(draw(pipe) - plain).max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("method", ["full", "controlnet"])
def test_diffusers_reads_what_is_trained(model, data, tmp_path, method):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    run = TrainingRun(
        configuration(model, data, tmp_path, *(CONTROLNET if method == "controlnet" else ["method=full"]))
    )
    path = run.run()
    kind = diffusers.SD3ControlNetModel if method == "controlnet" else diffusers.SD3Transformer2DModel
    ours, theirs = run.method.controlnet if method == "controlnet" else run.pipe.transformer, kind.from_pretrained(path)
    rng = np.random.default_rng(0)
    arrays = {
        "hidden_states": rng.standard_normal([1, 4, 16, 16]),
        "encoder_hidden_states": rng.standard_normal([1, 7, 40]),
        "pooled_projections": rng.standard_normal([1, 28]),
        "timestep": np.array([300.0]),
        **({"controlnet_cond": rng.standard_normal([1, 4, 16, 16])} if method == "controlnet" else {}),
    }
    arrays = {name: value.astype("float32") for name, value in arrays.items()}
    found = ours(**{name: paddle.to_tensor(value) for name, value in arrays.items()}, return_dict=False)[0]
    wanted = theirs(**{name: torch.from_numpy(value) for name, value in arrays.items()}, return_dict=False)[0]
    found, wanted = (found[0], wanted[0]) if method == "controlnet" else (found, wanted)
    np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), atol=1e-5)
