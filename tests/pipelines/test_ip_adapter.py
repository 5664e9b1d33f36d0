"""Pictures as prompts: they act as far as the scale says, together with everything else that a call can have."""

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, tiny
from PIL import Image

import ppsd3
from ppsd3.models.attention_processor import JointAttnProcessor2_5
from ppsd3.pipelines.residency import OnDemandNetwork
from ppsd3.serialization import Checkpoint
from ppsd3.utils.errors import InputError

SETTINGS = {"num_inference_steps": 3, "max_sequence_length": 16, "output_type": "np"}
MODEL = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
ATTENTIONS = 4


def picture(seed=0, size=(40, 30)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype="uint8"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return ip_adapters.write(tmp_path_factory.mktemp("ip") / "adapter", ATTENTIONS)


def make(adapter=None):
    pipe = tiny.make_pipeline(**MODEL)
    if adapter is not None:
        pipe.load_ip_adapter(adapter)
        pipe.set_ip_adapter_scale(1.0)
    return pipe


@pytest.fixture(scope="module")
def shared(adapter):
    """With the adapter; tests that use it leave it as it was."""
    return make(adapter)


@pytest.fixture(scope="module")
def plain():
    return draw(make())


def draw(pipe, prompt="a red circle", seed=0, **settings):
    return pipe(prompt, **{**SETTINGS, "generator": ppsd3.TorchGenerator(seed), **settings}).images


def differ(one, other):
    return np.abs(one - other).max() > 1e-3


def test_the_picture_acts_as_far_as_the_scale_says(adapter, plain):
    pipe = make(adapter)
    assert pipe.is_ip_adapter_active
    full = draw(pipe, ip_adapter_image=picture())
    assert differ(full, plain) and differ(full, draw(pipe, ip_adapter_image=picture(1)))
    assert np.array_equal(draw(pipe), plain)  # no picture
    pipe.set_ip_adapter_scale(0.5)
    assert differ(draw(pipe, ip_adapter_image=picture()), full)
    pipe.set_ip_adapter_scale([0.0, 0.0, 1.0, 0.0])
    assert pipe.is_ip_adapter_active and differ(draw(pipe, ip_adapter_image=picture()), plain)
    pipe.set_ip_adapter_scale(0)
    assert not pipe.is_ip_adapter_active
    assert np.array_equal(draw(pipe, ip_adapter_image=picture()), plain)


def test_the_scale_begins_at_a_half(adapter):
    pipe = tiny.make_pipeline(**MODEL)
    pipe.load_ip_adapter(adapter)
    assert {processor.scale for processor in pipe.transformer.attn_processors.values()} == {0.5}


def test_unloading_restores_everything(adapter, plain):
    pipe = tiny.make_pipeline(**MODEL)
    own = JointAttnProcessor2_5()
    pipe.transformer.set_attn_processor(own)
    names = set(pipe.transformer.state_dict())
    pipe.load_ip_adapter(adapter)
    pipe.load_ip_adapter(adapter)  # in the place of the first
    pipe.unload_ip_adapter()
    assert {*pipe.transformer.attn_processors.values()} == {own}
    assert set(pipe.transformer.state_dict()) == names
    assert pipe.image_encoder is None and pipe.feature_extractor is None and not pipe.is_ip_adapter_active
    assert np.array_equal(draw(pipe), plain)
    pipe.unload_ip_adapter()  # nothing is there: nothing happens


def test_prepared_steps_are_the_steps(shared):
    model, rng = shared.transformer, np.random.default_rng(0)
    latents, text, pooled, picture_embeds = (
        paddle.to_tensor(rng.standard_normal(shape).astype("float32"))
        for shape in ((2, 4, 16, 16), (2, 9, 40), (2, 28), (2, 16, 24))
    )
    times = paddle.to_tensor([900.0, 20.0])
    kwargs = {"ip_adapter_image_embeds": picture_embeds}
    for step, prepared in enumerate(model.prepare(text, pooled, times, picture_embeds)):
        direct = model(latents, text, pooled, times[step].expand([2]), joint_attention_kwargs=kwargs).sample
        assert np.abs((model(latents, prepared=prepared).sample - direct).numpy()).max() < 1e-5
        with pytest.raises(InputError, match="Give them to prepare"):
            model(latents, prepared=prepared, joint_attention_kwargs=kwargs)
    with pytest.raises(InputError, match="this transformer has none"):
        make().transformer.prepare(text, pooled, times, picture_embeds)


def test_features_in_place_of_pictures(shared):
    expected = draw(shared, ip_adapter_image=picture())
    embeds = shared.prepare_ip_adapter_image_embeds(picture())
    assert embeds.shape == [2, 16, 24] and not embeds[0].any()
    assert np.array_equal(draw(shared, ip_adapter_image_embeds=embeds), expected)
    assert np.array_equal(draw(shared, ip_adapter_image_embeds=[embeds]), expected)
    assert np.array_equal(shared.encode_image(picture())[0].numpy(), embeds[1].numpy())
    pixels = shared.feature_extractor(picture()).pixel_values
    assert np.array_equal(draw(shared, ip_adapter_image=pixels), expected)
    # the negative picture counts
    assert differ(draw(shared, ip_adapter_image_embeds=paddle.concat([embeds[1:], embeds[1:]])), expected)
    alone = shared.prepare_ip_adapter_image_embeds(picture(), do_classifier_free_guidance=False)
    unguided = draw(shared, ip_adapter_image_embeds=alone, guidance_scale=1.0)
    assert np.array_equal(unguided, draw(shared, ip_adapter_image=picture(), guidance_scale=1.0))
    twice = shared.prepare_ip_adapter_image_embeds(ip_adapter_image_embeds=embeds, num_images_per_prompt=2)
    assert twice.shape == [4, 16, 24] and not twice[:2].any()


def test_a_picture_for_each_prompt_or_each_drawing(shared):
    prompts, pictures = ["a red circle", "a star"], [picture(), picture(1)]
    seeds = [ppsd3.TorchGenerator(seed) for seed in (0, 1)]
    both = draw(shared, prompts, generator=seeds, ip_adapter_image=pictures)
    for i, prompt in enumerate(prompts):
        alone = draw(shared, prompt, seed=i, ip_adapter_image=pictures[i])
        assert np.abs(both[i] - alone[0]).max() < 1e-4
    seeds = [ppsd3.TorchGenerator(seed) for seed in (0, 1)]
    drawings = draw(shared, generator=seeds, ip_adapter_image=pictures, num_images_per_prompt=2)
    assert np.abs(drawings[0] - both[0]).max() < 1e-4
    with pytest.raises(InputError, match="`ip_adapter_image` holds 3 pictures"):
        draw(shared, prompts, ip_adapter_image=[*pictures, picture()])


def mask():
    array = np.zeros((64, 64), "uint8")
    array[16:48, 8:40] = 255
    return Image.fromarray(array)


TASKS = {
    "StableDiffusion3Img2ImgPipeline": {"image": picture(5, (64, 64))},
    "StableDiffusion3InpaintPipeline": {"image": picture(5, (64, 64)), "mask_image": mask()},
    "StableDiffusion3PAGPipeline": {},
    "StableDiffusion3PAGImg2ImgPipeline": {"image": picture(1), "strength": 0.9},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task(shared, task):
    pipe = getattr(ppsd3, task).from_pipe(shared)
    assert pipe.is_ip_adapter_active and pipe.image_encoder is shared.image_encoder
    assert differ(draw(pipe, ip_adapter_image=picture(), **TASKS[task]), draw(pipe, **TASKS[task]))


def test_together_with_a_controlnet(shared):
    net = ppsd3.SD3ControlNetModel.from_transformer(shared.transformer, num_layers=1)
    assert not any("ip_adapter" in name for name in net.state_dict())
    tiny.randomize(net, 3, 0.5).eval()
    pipe = ppsd3.StableDiffusion3ControlNetPipeline.from_pipe(shared, controlnet=net)
    settings = {"control_image": picture(5, (64, 64))}
    both = draw(pipe, ip_adapter_image=picture(), **settings)
    assert differ(both, draw(pipe, **settings))
    assert differ(both, draw(pipe, ip_adapter_image=picture(), controlnet_conditioning_scale=0.0, **settings))


def skipping(**settings):
    return {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 2.0, **settings}


GUIDANCE = {
    "skipped layers": skipping(),
    "perturbed": {"guidance": ppsd3.PerturbedAttentionGuidance(5.0, layers=[0, 2])},
    "perturbed alone": {"guidance": ppsd3.PerturbedAttentionGuidance(1.0)},
    "interval": {"guidance": ppsd3.GuidanceInterval(5.0, 0.3, 0.8)},
    "projected": {"guidance": ppsd3.AdaptiveProjectedGuidance(5.0)},
    "none": {"guidance": ppsd3.NoGuidance()},
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_every_guidance(shared, name):
    with_picture = draw(shared, ip_adapter_image=picture(), **GUIDANCE[name])
    without = draw(shared, **GUIDANCE[name])
    assert differ(with_picture, without) and differ(with_picture, draw(shared, ip_adapter_image=picture()))


def test_the_weakened_model_sees_the_picture(shared):
    """Perturbed attention takes from image tokens their sight of one another alone."""
    attention = shared.transformer.transformer_blocks[2].attn
    rng = np.random.default_rng(0)
    image, text, tokens, temb = (
        paddle.to_tensor(rng.standard_normal(shape).astype("float32"))
        for shape in ((1, 9, 32), (1, 5, 32), (1, 5, 32), (1, 16))
    )
    processor = attention.processor.perturbed()
    assert processor is attention.processor.perturbed() and processor.weights is attention.processor.weights
    seen = processor(attention, image, text, ip_hidden_states=tokens, temb=temb)[0]
    weakened = JointAttnProcessor2_5().perturbed()(attention, image, text)[0]
    assert np.abs((processor(attention, image, text)[0] - weakened).numpy()).max() == 0
    added = (
        attention.processor(attention, image, text, tokens, temb)[0] - attention.processor(attention, image, text)[0]
    )
    assert np.abs((seen - weakened - added).numpy()).max() < 1e-5


@pytest.mark.parametrize("cache", ["TaylorCache", "FirstBlockCache", "EasyCache"])
def test_step_caches(shared, cache):
    settings = {"ip_adapter_image": picture(), "num_inference_steps": 5}
    expected = draw(shared, **settings)
    shared.enable_cache(getattr(ppsd3, cache)(warmup=5))
    try:
        assert np.abs(draw(shared, **settings) - expected).max() < 1e-5
    finally:
        shared.disable_cache()


def test_compiled(adapter):
    pipe, settings = make(adapter), {"ip_adapter_image": picture(), "num_inference_steps": 2}
    scales = (1.0, 0.3)
    eager = []
    for scale in scales:
        pipe.set_ip_adapter_scale(scale)
        eager.append(draw(pipe, **settings))
    pipe.compile("transformer")
    for scale, expected in zip(scales, eager):
        pipe.set_ip_adapter_scale(scale)
        assert np.abs(draw(pipe, **settings) - expected).max() < 1e-4
    assert len(pipe.transformer._graphs) == 2


def test_a_callback_may_replace_the_text_and_end_guidance(shared):
    def change(pipe, step, timestep, tensors):
        if step == 0:
            pipe._guidance_scale = 1.0
            return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}

    names = ["prompt_embeds", "pooled_prompt_embeds"]
    settings = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
    assert differ(draw(shared, ip_adapter_image=picture(), **settings), draw(shared, **settings))

    def end(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0

    ended = draw(shared, ip_adapter_image=picture(), callback_on_step_end=end)
    assert np.abs(ended - draw(shared, ip_adapter_image=picture(), **settings)).max() < 1e-5


def test_saved_with_its_image_encoder_and_read_on_demand(shared, adapter, tmp_path):
    expected = draw(shared, ip_adapter_image=picture())
    shared.save_pretrained(tmp_path)
    saved = Checkpoint.open(tmp_path / "transformer", "diffusion_pytorch_model").keys()
    assert set(saved) == set(make().transformer.state_dict())  # the adapter has a file of its own
    index = (tmp_path / "model_index.json").read_text()
    assert "SiglipVisionModel" in index and "SiglipImageProcessor" in index
    for load_components in ("all", "on_demand"):
        pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path, load_components=load_components)
        pipe.set_progress_bar_config(disable=True)
        assert isinstance(pipe.image_encoder, OnDemandNetwork) == (load_components == "on_demand")
        pipe.load_ip_adapter(adapter / ip_adapters.FILE)
        pipe.set_ip_adapter_scale(1.0)
        for _ in range(2):  # what is read again finds the adapter again
            assert np.abs(draw(pipe, ip_adapter_image=picture()) - expected).max() < 1e-5
    pipe.unload_ip_adapter()
    assert not pipe.is_ip_adapter_active
    with pytest.raises(InputError, match="needs an IP-adapter"):
        draw(pipe, ip_adapter_image=picture())
    assert differ(draw(pipe), expected)
    pipe.load_ip_adapter(adapter)  # with its image encoder, on demand like the others
    assert isinstance(pipe.image_encoder, OnDemandNetwork) and pipe.is_ip_adapter_active


REFUSED = {
    "both": ({"ip_adapter_image": picture(), "ip_adapter_image_embeds": paddle.zeros([2, 16, 24])}, "Both"),
    "no picture": ({"ip_adapter_image": 1}, "`ip_adapter_image` is"),
    "pixels of another size": ({"ip_adapter_image": paddle.zeros([1, 3, 20, 20])}, r"takes \[B, 3, 28, 28\]"),
    "pixels that are not finite": (
        {"ip_adapter_image": paddle.full([1, 3, 28, 28], np.nan)},
        "`ip_adapter_image` holds NaN",
    ),
    "an array": ({"ip_adapter_image_embeds": np.zeros([16, 24])}, r"\[B, T, 24\]"),
    "features of another rank": ({"ip_adapter_image_embeds": paddle.zeros([16, 24])}, r"\[B, T, 24\]"),
    "features of another width": ({"ip_adapter_image_embeds": paddle.zeros([2, 16, 23])}, r"\[B, T, 24\]"),
    "no negative features": ({"ip_adapter_image_embeds": paddle.zeros([1, 16, 24])}, "zeros_like"),
    "too many features": ({"ip_adapter_image_embeds": paddle.zeros([6, 16, 24])}, "holds 3 pictures"),
    "in the wrong place": (
        {"joint_attention_kwargs": {"ip_adapter_image_embeds": paddle.zeros([2, 16, 24])}},
        "the argument of that name",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(shared, name):
    arguments, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        draw(shared, **arguments)


def test_a_picture_without_what_reads_it(adapter):
    pipe = make()
    for name, value in {"ip_adapter_image": picture(), "ip_adapter_image_embeds": paddle.zeros([2, 16, 24])}.items():
        with pytest.raises(InputError, match=f"`{name}` needs an IP-adapter.*load_ip_adapter"):
            draw(pipe, **{name: value})
    with pytest.raises(InputError, match="scale could be set"):
        pipe.set_ip_adapter_scale(0.5)
    with pytest.raises(InputError, match="`image_encoder` and `feature_extractor`"):
        pipe.encode_image(picture())
    with pytest.raises(InputError, match="Neither"):
        pipe.prepare_ip_adapter_image_embeds()
    pipe.load_ip_adapter(adapter, image_encoder_folder=None)
    with pytest.raises(InputError, match="needs `image_encoder` and"):
        draw(pipe, ip_adapter_image=picture())
    pipe.image_encoder = ppsd3.SiglipVisionModel(**{**ip_adapters.SIGLIP, "hidden_size": 32})
    pipe.feature_extractor = ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR)
    with pytest.raises(InputError, match=r"width 32.*reads 24"):
        draw(pipe, ip_adapter_image=picture())
    wrong = "has to be a number"
    for scale, message in (("1", wrong), (True, wrong), ([1.0], "1 numbers.*4 attentions")):
        with pytest.raises(InputError, match=message):
            pipe.set_ip_adapter_scale(scale)
