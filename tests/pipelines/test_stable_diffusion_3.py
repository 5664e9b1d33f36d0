"""StableDiffusion3Pipeline: every argument does what it says, and what cannot be used is refused at once."""

import inspect

import numpy as np
import paddle
import pytest
from helpers import tiny
from helpers.parameters import steady

import ppsd3
from ppsd3.utils.errors import InputError

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


@pytest.fixture
def own_pipe():
    """A pipeline that a test may change."""
    return tiny.make_pipeline()


def draw(pipe, prompt=PROMPT, **arguments):
    """Pictures [B, H, W, 3] in [0, 1] of a short run with seed 0."""
    # Three steps: the second is the one that the settings of single steps act in, the last is too small to show.
    defaults = {"num_inference_steps": 3, "generator": ppsd3.TorchGenerator(0), "output_type": "np"}
    return pipe(prompt, **{**defaults, **arguments}).images


def differ(first, second):
    return np.abs(first - second).max() > 0.02


def close(first, second):
    return np.abs(first - second).max() < 1e-4


# ------------------------------------------------------------------------------------------------ the call's contract


def test_signature_is_diffusers():
    call = inspect.signature(ppsd3.StableDiffusion3Pipeline.__call__).parameters
    expected = {
        "prompt": None,
        "prompt_2": None,
        "prompt_3": None,
        "height": None,
        "width": None,
        "num_inference_steps": 28,
        "sigmas": None,
        "guidance_scale": 7.0,
        "negative_prompt": None,
        "negative_prompt_2": None,
        "negative_prompt_3": None,
        "num_images_per_prompt": 1,
        "generator": None,
        "latents": None,
        "prompt_embeds": None,
        "negative_prompt_embeds": None,
        "pooled_prompt_embeds": None,
        "negative_pooled_prompt_embeds": None,
        "ip_adapter_image": None,
        "ip_adapter_image_embeds": None,
        "output_type": "pil",
        "return_dict": True,
        "joint_attention_kwargs": None,
        "clip_skip": None,
        "callback_on_step_end": None,
        "callback_on_step_end_tensor_inputs": ["latents"],
        "max_sequence_length": 256,
        "skip_guidance_layers": None,
        "skip_layer_guidance_scale": 2.8,
        "skip_layer_guidance_stop": 0.2,
        "skip_layer_guidance_start": 0.01,
        "mu": None,
        "guidance": None,  # ours
        "timesteps": None,  # as diffusers had it up to 0.31
    }
    assert {name: p.default for name, p in call.items() if name != "self"} == expected
    assert [name for name in call if name != "self"] == list(expected)


def test_pil_by_default(pipe):
    output = pipe(PROMPT, num_inference_steps=1)
    assert output.images[0].size == (tiny.SIDE, tiny.SIDE) and output.images[0].mode == "RGB"
    assert output[0] is output.images


def test_picture_is_no_flat_colour(pipe):
    assert draw(pipe).std() > 0.1


def test_tuple_and_output_types(pipe):
    array = draw(pipe)
    (images,) = draw_raw(pipe, return_dict=False, output_type="np")
    assert np.array_equal(images, array)
    for name in ("pt", "pd"):
        tensor = draw_raw(pipe, output_type=name).images
        assert close(tensor.numpy().transpose(0, 2, 3, 1), array)
    pil = np.stack([np.asarray(image) for image in draw_raw(pipe, output_type="pil").images])
    assert np.array_equal(pil, (array * 255).round().astype("uint8"))
    latents = draw_raw(pipe, output_type="latent").images
    assert latents.shape == [1, 4, 16, 16]
    decoded = pipe.image_processor.postprocess(pipe.vae.decode(latents / 1.5305 + 0.0609).sample.detach(), "np")
    assert close(decoded, array)


def draw_raw(pipe, **arguments):
    return pipe(PROMPT, num_inference_steps=3, generator=ppsd3.TorchGenerator(0), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt_2": "a blue square"},
        {"prompt_3": "a blue square"},
        {"num_inference_steps": 4},
        {"sigmas": [1.0, 0.4, 0.1]},
        {"guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"negative_prompt": "a blue square"},
        {"negative_prompt_2": "a blue square"},
        {"negative_prompt_3": "a blue square"},
        {"generator": ppsd3.TorchGenerator(1)},
        {"max_sequence_length": 100},
        {"clip_skip": 1},
        {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9},
        {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9, "skip_layer_guidance_scale": 1.0},
        {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0},
    ],
    ids=steady,
)
def test_argument_changes_the_picture(pipe, arguments):
    assert differ(draw(pipe), draw(pipe, **arguments))


def test_same_seed_same_picture(pipe):
    assert np.array_equal(draw(pipe), draw(pipe))


def test_paddle_generator(pipe):
    first, again = (draw(pipe, generator=paddle.seed(7)) for _ in range(2))
    assert np.array_equal(first, again) and differ(first, draw(pipe))
    paddle.seed(7)
    assert np.array_equal(first, draw(pipe, generator=None))


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.0])
def test_batches(pipe, prompts, copies, guidance_scale):
    """Each picture of a batch is the one that its prompt and its noise give alone."""
    texts = [PROMPT, "a blue square"][:prompts]
    count = prompts * copies
    generators = [ppsd3.TorchGenerator(i) for i in range(count)]
    options = {"guidance_scale": guidance_scale}
    images = draw(pipe, texts, num_images_per_prompt=copies, generator=generators, **options)
    assert images.shape == (count, tiny.SIDE, tiny.SIDE, 3)
    for i in range(count):
        alone = draw(pipe, texts[i // copies], generator=ppsd3.TorchGenerator(i), **options)
        assert close(images[i : i + 1], alone)


def test_size(pipe):
    assert draw(pipe, height=32, width=96).shape == (1, 32, 96, 3)


def test_given_latents(pipe):
    noise = paddle.to_tensor(ppsd3.TorchGenerator(0).randn([1, 4, 16, 16]))
    assert np.array_equal(draw(pipe, latents=noise, generator=None), draw(pipe))


def test_dynamic_shift(own_pipe):
    config = {**tiny.SCHEDULER, "use_dynamic_shifting": True}
    own_pipe.scheduler = ppsd3.FlowMatchEulerDiscreteScheduler(**config)
    assert differ(draw(own_pipe, mu=0.2), draw(own_pipe, mu=1.5))
    assert differ(draw(own_pipe), draw(own_pipe, mu=1.5))


def test_joint_attention_kwargs_reach_the_processors(pipe):
    assert np.array_equal(draw(pipe), draw(pipe, joint_attention_kwargs={"scale": 1.0}))
    with pytest.raises(InputError, match="scale"):
        draw(pipe, joint_attention_kwargs={"scale": 0.5})
    with pytest.raises(InputError, match="unheard_of"):
        draw(pipe, joint_attention_kwargs={"unheard_of": 1})


def test_properties(pipe):
    draw(pipe, guidance_scale=4.0, clip_skip=1, skip_guidance_layers=[1], num_inference_steps=3)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (4.0, True)
    assert (pipe.clip_skip, pipe.skip_guidance_layers, pipe.num_timesteps) == (1, [1], 3)
    assert pipe.joint_attention_kwargs is None and pipe.interrupt is False


# ------------------------------------------------------------------------------------------------- encoding by itself


def test_encode_prompt_then_draw(pipe):
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(PROMPT, None, None, negative_prompt="blue")))
    assert embeds["prompt_embeds"].shape == [1, 77 + 256, 40] and embeds["pooled_prompt_embeds"].shape == [1, 28]
    assert np.array_equal(draw(pipe, None, **embeds), draw(pipe, negative_prompt="blue"))
    positive = {name: embeds[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    # not bit for bit: the negative prompt is encoded alone here, and with the positive one there
    again, expected = draw(pipe, None, **positive, negative_prompt="blue"), draw(pipe, negative_prompt="blue")
    assert np.abs(again - expected).max() < 1e-5


def test_given_embeds_are_repeated(pipe):
    embeds, _, pooled, _ = pipe.encode_prompt([PROMPT, "blue"], None, None, do_classifier_free_guidance=False)
    generators = [ppsd3.TorchGenerator(i) for i in range(4)]
    options = {"num_images_per_prompt": 2, "guidance_scale": 1.0}
    images = draw(pipe, None, prompt_embeds=embeds, pooled_prompt_embeds=pooled, generator=generators, **options)
    texts = draw(pipe, [PROMPT, "blue"], generator=[ppsd3.TorchGenerator(i) for i in range(4)], **options)
    assert close(images, texts)


def test_encode_prompt_without_guidance(pipe):
    _, negative, _, negative_pooled = pipe.encode_prompt(PROMPT, None, None, do_classifier_free_guidance=False)
    assert negative is None and negative_pooled is None


def test_encode_prompt_refuses(pipe):
    with pytest.raises(InputError, match=r"pipe.to"):
        pipe.encode_prompt(PROMPT, None, None, device="gpu:0")
    with pytest.raises(InputError, match="lora_scale"):
        pipe.encode_prompt(PROMPT, None, None, lora_scale=0.5)
    pipe.encode_prompt(PROMPT, None, None, device="cpu", lora_scale=1.0)


@pytest.mark.parametrize("numbers", ["1", "2", "3", "12", "13", "23"])
def test_any_encoder_may_be_absent(own_pipe, numbers):
    whole = draw(own_pipe)
    shape = own_pipe.encode_prompt(PROMPT, None, None)[0].shape
    for number in numbers:
        suffix = "" if number == "1" else "_" + number
        setattr(own_pipe, "text_encoder" + suffix, None)
        setattr(own_pipe, "tokenizer" + suffix, None)
    embeds, _, pooled, _ = own_pipe.encode_prompt(PROMPT, None, None)
    assert embeds.shape == shape and pooled.shape == [1, 28]
    assert ("1" in numbers) == (not pooled[:, :16].any()) and ("2" in numbers) == (not pooled[:, 16:].any())
    assert ("1" in numbers) == (not embeds[:, :77, :16].any()) and ("2" in numbers) == (not embeds[:, :77, 16:28].any())
    assert ("3" in numbers) == (not embeds[:, 77:].any())
    assert differ(draw(own_pipe), whole)


def test_truncation_is_reported_for_each_encoder(pipe, caplog):
    draw(pipe, "red circle " * 100, max_sequence_length=100, guidance_scale=1.0)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert all("77 tokens" in message for message in messages[:2]) and "100 tokens" in messages[2]
    assert "red circle" in messages[2]


def test_short_prompts_are_not_reported(pipe, caplog):
    draw(pipe)
    assert not caplog.records


# ---------------------------------------------------------------------------------------------------------- callbacks

NAMES = ["latents", "prompt_embeds", "pooled_prompt_embeds"]


def test_callback_sees_what_it_asks_for(pipe):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        seen.append((step, float(timestep), {name: tensor.shape for name, tensor in tensors.items()}))
        return {}

    draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=NAMES)
    shapes = {"latents": [1, 4, 16, 16], "prompt_embeds": [2, 333, 40], "pooled_prompt_embeds": [2, 28]}
    assert [(step, tensors) for step, _, tensors in seen] == [(0, shapes), (1, shapes), (2, shapes)]
    assert seen[0][1] == 1000.0 and seen[1][1] < 1000.0


@pytest.mark.parametrize("name", NAMES)
def test_callback_replaces(pipe, name):
    def callback(pipeline, step, timestep, tensors):
        return {name: tensors[name] * 0.5}

    assert differ(draw(pipe), draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[name]))


def test_callback_may_return_nothing(pipe):
    assert np.array_equal(draw(pipe), draw(pipe, callback_on_step_end=lambda *arguments: None))


def test_zeroed_latents_stay_zero(pipe):
    def callback(pipeline, step, timestep, tensors):
        return {"latents": paddle.zeros_like(tensors["latents"])} if step == 2 else {}

    assert not draw_raw(pipe, callback_on_step_end=callback, output_type="latent").images.any()


def test_callback_changes_guidance(pipe):
    def callback(pipeline, step, timestep, tensors):
        pipeline._guidance_scale += 2.0

    assert differ(draw(pipe), draw(pipe, callback_on_step_end=callback))
    assert pipe.guidance_scale == 7.0 + 3 * 2.0


@pytest.mark.parametrize("trims", [True, False])
def test_callback_switches_guidance_off(pipe, trims):
    def callback(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 0.0
        return {name: tensors[name][-1:] for name in NAMES[1:]} if trims and step == 0 else {}

    names = {"callback_on_step_end_tensor_inputs": NAMES[1:]} if trims else {}
    cut = draw(pipe, callback_on_step_end=callback, **names)
    assert differ(cut, draw(pipe)) and differ(cut, draw(pipe, guidance_scale=1.0))


def test_callback_that_breaks_the_batch(pipe):
    def callback(pipeline, step, timestep, tensors):
        return {name: tensors[name][-1:] for name in NAMES[1:]}

    with pytest.raises(InputError, match="negative, positive"):
        draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=NAMES)


def test_callback_returns_an_unknown_tensor(pipe):
    with pytest.raises(InputError, match="velocity"):
        draw(pipe, callback_on_step_end=lambda *arguments: {"velocity": 1})


def test_interrupt(pipe):
    steps = []

    def callback(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = step == 1

    draw(pipe, num_inference_steps=5, callback_on_step_end=callback)
    assert steps == [0, 1]
    draw(pipe)
    assert pipe.interrupt is False


# ---------------------------------------------------------------------------------------------------------- bad input


def embeds(rows=1, tokens=333, width=40, pooled=28):
    return {"prompt_embeds": paddle.zeros([rows, tokens, width]), "pooled_prompt_embeds": paddle.zeros([rows, pooled])}


def negative(tensors):
    return {"negative_" + name: tensor for name, tensor in tensors.items()}


BAD = {
    "neither prompt nor embeds": ({"prompt": None}, "Neither `prompt` nor `prompt_embeds`"),
    "prompt and embeds": (embeds(), "Both `prompt` and `prompt_embeds`"),
    "prompt_2 and embeds": ({"prompt": None, "prompt_2": "x", **embeds()}, "Both `prompt_2`"),
    "prompt_3 and embeds": ({"prompt": None, "prompt_3": "x", **embeds()}, "Both `prompt_3`"),
    "negative prompt and embeds": ({"negative_prompt": "x", **negative(embeds())}, "Both `negative_prompt`"),
    "negative prompt_3 and embeds": ({"negative_prompt_3": "x", **negative(embeds())}, "Both `negative_prompt_3`"),
    "prompt of another type": ({"prompt": 3}, "`prompt` is 3"),
    "prompt_2 of another type": ({"prompt_2": (1,)}, r"`prompt_2\[0\]` is 1"),
    "prompt_3 of another type": ({"prompt_3": {}}, "`prompt_3` is {}"),
    "no text in the list": ({"prompt": [PROMPT, None]}, r"`prompt\[1\]`"),
    "empty batch": ({"prompt": []}, "`prompt` is an empty list"),
    "empty batch of embeds": ({"prompt": None, **embeds(rows=0)}, "B >= 1"),
    "prompt_2 of another length": ({"prompt": ["a", "b"], "prompt_2": ["c"]}, "`prompt_2` holds 1 texts"),
    "prompt_3 for several prompts": ({"prompt": ["a", "b"], "prompt_3": "c"}, "`prompt_3` holds 1 texts"),
    "negatives of another length": ({"negative_prompt": ["a", "b"]}, "`negative_prompt` holds 2 texts"),
    "negatives_2 of another length": ({"negative_prompt_2": ["a", "b"]}, "`negative_prompt_2` holds 2 texts"),
    "embeds without pooled": ({"prompt": None, "prompt_embeds": paddle.zeros([1, 333, 40])}, "`pooled_prompt_embeds`"),
    "pooled without embeds": ({"pooled_prompt_embeds": paddle.zeros([1, 28])}, "without `prompt_embeds`"),
    "negative embeds without pooled": (
        {"negative_prompt_embeds": paddle.zeros([1, 333, 40])},
        "`negative_pooled_prompt_embeds`",
    ),
    "embeds of another shape": (
        {"prompt": None, **embeds(), **negative(embeds(tokens=154))},
        "`prompt_embeds` has the shape",
    ),
    "embeds of another length than the text's": ({"prompt": None, **embeds(tokens=154)}, "max_sequence_length"),
    "embeds of another width": ({"prompt": None, **embeds(width=41)}, "takes 40 and 28"),
    "embeds of another rank": (
        {"prompt": None, "prompt_embeds": paddle.zeros([333, 40]), "pooled_prompt_embeds": paddle.zeros([28])},
        r"\[B, L, D\]",
    ),
    "height": ({"height": 60}, "`height` is 60.*56 or 64"),
    "width": ({"width": 7}, "`width` is 7.*Use 8"),
    "negative height": ({"height": -8}, "`height` is -8"),
    "fractional width": ({"width": 64.0}, "`width` is 64.0"),
    "larger than the positions": ({"width": 24 * 8 + 8}, "Use 192 or less"),
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
    "fractional steps": ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5"),
    "no pictures": ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0"),
    "too many tokens": ({"max_sequence_length": 513}, "from 2 to 512"),
    "no tokens": ({"max_sequence_length": 0}, "`max_sequence_length` is 0"),
    "clip_skip": ({"clip_skip": 3}, "`clip_skip` is 3.*from 0 to 2"),
    "callback tensor": ({"callback_on_step_end_tensor_inputs": ["noise"]}, "noise.*can have"),
    "output type": ({"output_type": "jpeg"}, "`output_type` is 'jpeg'"),
    "ip adapter": ({"ip_adapter_image": 1}, "`ip_adapter_image`"),
    "ip adapter embeds": ({"ip_adapter_image_embeds": 1}, "`ip_adapter_image_embeds`"),
    "skip layers": ({"skip_guidance_layers": [1, 7]}, r"\[7\].*0 to 2"),
    "skip layers without guidance": ({"skip_guidance_layers": [1], "guidance_scale": 1.0}, "guidance_scale above 1"),
    "generators": ({"generator": [ppsd3.TorchGenerator(0)] * 2}, "2 generators.*1 pictures"),
    "generator of another kind": ({"generator": 3}, "TorchGenerator"),
    "latents": ({"latents": paddle.zeros([1, 4, 8, 8])}, r"\[1, 4, 8, 8\].*\[1, 4, 16, 16\]"),
    "latents of another type": ({"latents": np.full((1, 4, 16, 16), np.nan)}, "`latents` holds NaN"),
    "mu without dynamic shift": ({"mu": 1.0}, "mu"),
    "no sigmas": ({"sigmas": []}, "sigmas"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pipe, name, monkeypatch):
    """One typed error that names the argument; the transformer is never called."""
    monkeypatch.setattr(type(pipe.transformer), "forward", None)
    arguments, message = BAD[name]
    with pytest.raises(InputError, match=message):
        pipe(**{"prompt": PROMPT, **arguments})


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler"])
def test_missing_component(own_pipe, name):
    setattr(own_pipe, name, None)
    with pytest.raises(InputError, match=f"no `{name}`"):
        own_pipe(PROMPT)


def test_encoder_without_tokenizer(own_pipe):
    own_pipe.tokenizer_2 = None
    with pytest.raises(InputError, match="`tokenizer_2`"):
        own_pipe(PROMPT)


def test_encoders_of_another_model(own_pipe):
    own_pipe.text_encoder_2 = own_pipe.text_encoder
    own_pipe.tokenizer_2 = own_pipe.tokenizer
    with pytest.raises(InputError, match="belong to this transformer"):
        own_pipe(PROMPT)


# --------------------------------------------------------------------------------------------------------- other modes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder_3"])
def test_sixteen_bits_need_a_gpu(own_pipe, name, dtype):
    getattr(own_pipe, name).to(dtype=dtype)
    with pytest.raises(InputError, match=f"`{name}` is {dtype} on the CPU.*float32"):
        own_pipe(PROMPT)
    own_pipe.to("float32")(PROMPT, num_inference_steps=1)


def test_progress_bar(own_pipe, capsys):
    own_pipe.set_progress_bar_config(disable=False)
    draw(own_pipe)
    assert "3/3" in capsys.readouterr().err
    own_pipe.set_progress_bar_config(disable=True)
    draw(own_pipe)
    assert not capsys.readouterr().err


def test_no_gradient_is_kept(pipe):
    assert draw_raw(pipe, output_type="latent").images.stop_gradient
