"""Text to image, image to image and inpainting: what their arguments mean, and pipelines change into one another."""

import numpy as np
import paddle
import pytest
from helpers import tiny
from helpers.parameters import steady
from PIL import Image

import ppsd3
from ppsd3 import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    TorchGenerator,
)
from ppsd3.pipelines.stable_diffusion_3.guidance import ClassifierFreeGuidance, NoGuidance
from ppsd3.utils.errors import InputError

TASKS = (
    StableDiffusion3Pipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)
PROMPT = "a red circle"
SIDE = tiny.SIDE


def picture(seed=0, size=(SIDE, SIDE)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype="uint8"))


def mask(size=(SIDE, SIDE)):
    array = np.zeros(size[::-1], "uint8")
    array[10:40, 20:50] = 255
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def pipes():
    first = tiny.make_pipeline()
    made = {class_: class_.from_pipe(first) for class_ in TASKS}
    # a transformer that reads mask and masked picture, beside 4 latent channels
    reads_mask = tiny.make_components(in_channels=9, out_channels=4)["transformer"]
    made["reads mask"] = StableDiffusion3InpaintPipeline.from_pipe(first, transformer=reads_mask)
    return made


OWN = {
    StableDiffusion3Pipeline: {},
    StableDiffusion3PAGPipeline: {"pag_scale": 2.0},
    StableDiffusion3Img2ImgPipeline: {"image": picture()},
    StableDiffusion3InpaintPipeline: {"image": picture(), "mask_image": mask()},
    "reads mask": {"image": picture(), "mask_image": mask()},
}


def draw(pipes, task, **changes):
    settings = {"prompt": PROMPT, "num_inference_steps": 4, "output_type": "np", "generator": TorchGenerator(3)}
    settings = {**settings, **OWN[task], **changes}
    images = pipes[task](**{name: value for name, value in settings.items() if value is not REMOVED}).images
    return np.asarray(images.numpy() if isinstance(images, paddle.Tensor) else images)


REMOVED = object()


def embeds(pipe, sign):
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, pipe.encode_prompt("a star", None, None, negative_prompt="blue")))
    return {name: given[name] for name in names if name.startswith("negative") == (sign == "negative_")}


@pytest.mark.parametrize("task", TASKS)
def test_embeddings_in_place_of_prompts(pipes, task):
    positive, negative = (embeds(pipes[task], sign) for sign in ("", "negative_"))
    expected = draw(pipes, task, prompt="a star", negative_prompt="blue", num_images_per_prompt=2)
    given = draw(pipes, task, prompt=REMOVED, **positive, **negative, num_images_per_prompt=2)
    assert np.abs(given - expected).max() < 1e-4
    # each of the four matters
    for name in (*positive, *negative):
        changed = {**positive, **negative, name: {**positive, **negative}[name] * 0.5}
        assert np.abs(draw(pipes, task, prompt=REMOVED, num_images_per_prompt=2, **changed) - expected).max() > 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_tuple_and_dictionary(pipes, task):
    settings = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "np", **OWN[task]}
    (images,) = pipes[task](**settings, generator=TorchGenerator(3), return_dict=False)
    assert np.array_equal(images, pipes[task](**settings, generator=TorchGenerator(3)).images)


@pytest.mark.parametrize("task", [*TASKS, "reads mask"])
def test_a_batch_is_its_pictures(pipes, task):
    # an image for each generator: of one image for all, the first generator draws the latents
    images = {"image": [OWN[task]["image"]] * 2} if "mask_image" in OWN[task] else {}
    two = draw(pipes, task, prompt=[PROMPT, "a star"], generator=[TorchGenerator(3), TorchGenerator(4)], **images)
    for i, (prompt, seed) in enumerate(((PROMPT, 3), ("a star", 4))):
        one = draw(pipes, task, prompt=prompt, generator=TorchGenerator(seed))
        assert np.abs(two[i] - one[0]).max() < 1e-4


@pytest.mark.parametrize("task", [*TASKS, "reads mask"])
def test_fused_projections_and_guidance_objects_change_nothing(pipes, task):
    plain = draw(pipes, task)
    if task is not StableDiffusion3PAGPipeline:  # which has one guidance object
        assert np.array_equal(draw(pipes, task, guidance=ClassifierFreeGuidance(7.0)), plain)
    pipes[task].transformer.fuse_qkv_projections()
    try:
        assert np.abs(draw(pipes, task) - plain).max() < 1e-4
    finally:
        pipes[task].transformer.unfuse_qkv_projections()


@pytest.mark.parametrize("task", TASKS)
def test_saved_and_loaded(pipes, task, tmp_path):
    pipes[task].save_pretrained(tmp_path)
    again = ppsd3.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is task
    assert np.array_equal(draw({task: again}, task), draw(pipes, task))


@pytest.mark.parametrize("task", TASKS)
def test_saved_and_loaded_without_t5(pipes, task, tmp_path):
    without = task.from_pipe(pipes[task], text_encoder_3=None, tokenizer_3=None)
    without.set_progress_bar_config(disable=True)
    without.save_pretrained(tmp_path)
    assert not (tmp_path / "text_encoder_3").exists() and not (tmp_path / "tokenizer_3").exists()
    again = ppsd3.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is task and again.text_encoder_3 is None and again.tokenizer_3 is None
    drawn = draw({task: again}, task)
    assert np.array_equal(drawn, draw({task: without}, task))
    assert np.abs(drawn - draw(pipes, task)).max() > 1e-3


@pytest.mark.parametrize("task", [StableDiffusion3Pipeline, *TASKS[2:], "reads mask"])
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_a_callback_changes_the_guidance(pipes, task, scale):
    seen = []

    def change(pipe, step, timestep, tensors):
        seen.append((step, pipe.guidance_scale, tensors["latents"]))
        pipe._guidance_scale = scale
        return {}

    options = {"strength": 1.0} if task not in TASKS[:2] else {}
    changed = draw(pipes, task, callback_on_step_end=change, **options)
    assert [scale for _, scale, _ in seen] == [7.0, scale, scale, scale]
    asked, whole = len(seen), [latents for _, _, latents in seen]
    draw(pipes, task, callback_on_step_end=lambda *a: seen.append((a[1], 7.0, a[3]["latents"])) or {}, **options)
    kept = [latents for _, _, latents in seen[asked:]]
    # the first step is done when the callback is asked for the first time; from the second on the scale is new
    assert np.array_equal(whole[0].numpy(), kept[0].numpy())
    assert np.abs((whole[1] - kept[1]).numpy()).max() > 1e-3
    assert np.abs(changed - draw(pipes, task, **options)).max() > 1e-3


def test_strength(pipes):
    task, whole = StableDiffusion3Img2ImgPipeline, []
    for strength in (0.25, 1.0):
        seen = []
        draw(pipes, task, strength=strength, callback_on_step_end=lambda *a, seen=seen: seen.append(a[1]) or {})
        whole.append(len(seen))
    assert whole == [1, 4]
    # at full strength the picture is gone
    assert np.abs(draw(pipes, task, strength=1.0) - draw(pipes, task, strength=1.0, image=picture(1))).max() < 0.02


def test_image_to_image_from_latents(pipes):
    task = StableDiffusion3Img2ImgPipeline
    latents = paddle.to_tensor(np.random.RandomState(0).randn(1, 4, 16, 16).astype("float32"))
    assert draw(pipes, task, image=None, latents=latents).shape == (1, SIDE, SIDE, 3)
    assert np.abs(draw(pipes, task, image=None, latents=latents) - draw(pipes, task)).max() > 0.01
    for wrong in ({"latents": latents}, {"image": None}):
        with pytest.raises(InputError, match="either `image`, or the `latents`"):
            draw(pipes, task, **wrong)
    # latents as the picture: noise is added to them
    assert draw(pipes, task, image=latents).shape == (1, SIDE, SIDE, 3)


@pytest.mark.parametrize("task", [StableDiffusion3InpaintPipeline, "reads mask"])
def test_latents_of_inpainting_are_its_noise(pipes, task):
    latents = paddle.to_tensor(np.random.RandomState(0).randn(1, 4, 16, 16).astype("float32"))
    for strength in (0.5, 1.0):
        given = draw(pipes, task, latents=latents, strength=strength)
        assert np.abs(given - draw(pipes, task, strength=strength)).max() > 1e-3


def test_inpainting_keeps_what_is_not_marked(pipes):
    task = StableDiffusion3InpaintPipeline
    drawn = draw(pipes, task, output_type="latent")
    clean = draw(pipes, task, output_type="latent", mask_image=np.zeros((1, SIDE, SIDE), "float32"))
    inside = np.zeros((16, 16), bool)
    inside[2:11, 4:14] = True
    difference = np.abs(drawn - clean).max(axis=(0, 1))
    assert difference[~inside].max() < 1e-5 and difference[4:9, 6:11].min() > 1e-3


@pytest.mark.parametrize("task", [StableDiffusion3InpaintPipeline, "reads mask"])
def test_mask_and_callback(pipes, task):
    plain = draw(pipes, task)
    assert np.abs(draw(pipes, task, mask_image=np.ones((1, SIDE, SIDE), "float32")) - plain).max() > 1e-3
    names = ["mask"] if task != "reads mask" else ["mask", "masked_image_latents"]
    for name in names:
        seen = []

        def change(pipe, step, timestep, tensors, name=name, seen=seen):
            seen.append(tensors[name].shape)
            return {name: tensors[name] * 0.0}

        options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": [name]}
        assert np.abs(draw(pipes, task, **options) - plain).max() > 1e-4
        assert seen[0] == [1, 1 if name == "mask" else 4, 16, 16]


@pytest.mark.parametrize("task", [StableDiffusion3InpaintPipeline, "reads mask"])
def test_masks_for_several_prompts(pipes, task):
    prompts, generators = [PROMPT, "a star"], [[TorchGenerator(seed)] for seed in (3, 4)]
    other = Image.fromarray(np.roll(np.asarray(mask()), 17, axis=1))
    together = {"prompt": prompts, "image": [picture(), picture(1)], "mask_image": [mask(), other]}
    two = draw(pipes, task, generator=[TorchGenerator(3), TorchGenerator(4)], **together)
    for i, marked in enumerate((mask(), other)):
        settings = {"prompt": prompts[i], "image": picture(i), "mask_image": marked, "generator": generators[i]}
        assert np.abs(two[i] - draw(pipes, task, **settings)[0]).max() < 1e-4
    one_mask = draw(pipes, task, **{**together, "mask_image": mask()}, generator=[TorchGenerator(3), TorchGenerator(4)])
    assert np.abs(one_mask[0] - two[0]).max() < 1e-4 and np.abs(one_mask[1] - two[1]).max() > 1e-3
    with pytest.raises(InputError, match="3 "):
        draw(pipes, task, **{**together, "mask_image": [mask()] * 3})
    # each prompt's mask serves all of its pictures
    together["image"] = [picture(), picture(), picture(1), picture(1)]
    four = draw(pipes, task, **together, num_images_per_prompt=2, generator=[TorchGenerator(s) for s in (3, 5, 4, 6)])
    assert np.abs(four[[0, 2]] - two).max() < 1e-4


def test_masked_latents_in_place_of_the_picture(pipes):
    pipe, task = pipes["reads mask"], "reads mask"
    pixels = pipe.image_processor.preprocess(picture(), SIDE, SIDE)
    keep = pipe.mask_processor.preprocess(mask(), SIDE, SIDE) < 0.5
    raw = pipe.vae.encode(pixels * keep.astype("float32")).latent_dist.mode()
    given = draw(pipes, task, masked_image_latents=raw, strength=1.0)
    assert np.abs(given - draw(pipes, task, masked_image_latents=raw * 0.0, strength=1.0)).max() > 1e-3


def test_cut_out_and_put_back(pipes):
    large, marked = picture(size=(150, 120)), mask(size=(150, 120))
    options = {"image": large, "mask_image": marked, "output_type": "pil"}
    (drawn,) = draw(pipes, StableDiffusion3InpaintPipeline, padding_mask_crop=4, **options)
    assert drawn.shape == (120, 150, 3)
    outside = np.asarray(marked) == 0
    assert np.array_equal(drawn[outside], np.asarray(large)[outside])
    assert np.abs(drawn[~outside].astype(int) - np.asarray(large)[~outside]).max() > 10
    for wrong, message in (
        ({"output_type": "np"}, "PIL pictures only"),
        ({"mask_image": Image.new("L", (150, 120))}, "all black"),
        ({"mask_image": mask()}, "of one size"),
        ({"image": np.zeros((1, 120, 150, 3), "float32")}, "PIL pictures"),
    ):
        with pytest.raises(InputError, match=message):
            draw(pipes, StableDiffusion3InpaintPipeline, padding_mask_crop=4, **{**options, **wrong})


@pytest.mark.parametrize(
    "task, wrong, message",
    [
        (StableDiffusion3Img2ImgPipeline, {"strength": 1.5}, "`strength` is 1.5"),
        (StableDiffusion3Img2ImgPipeline, {"strength": 0.0}, "leaves none to do"),
        (StableDiffusion3Img2ImgPipeline, {"image": [picture()] * 3}, "holds 3 pictures, but there are 1 prompts"),
        (StableDiffusion3InpaintPipeline, {"mask_image": None}, "`image` and `mask_image`"),
        (StableDiffusion3Pipeline, {"guidance": 7.0}, "`guidance` is 7.0"),
        (StableDiffusion3Pipeline, {"guidance": NoGuidance(), "skip_guidance_layers": [1]}, "Both `guidance`"),
    ],
    ids=steady,
)
def test_refusals(pipes, task, wrong, message):
    with pytest.raises(InputError, match=message):
        draw(pipes, task, **wrong)


def test_inpainting_refuses_other_transformers(pipes):
    odd = tiny.make_components(in_channels=6, out_channels=4)["transformer"]
    pipe = StableDiffusion3InpaintPipeline.from_pipe(pipes[StableDiffusion3Pipeline], transformer=odd)
    with pytest.raises(InputError, match="reads 6 channels; inpainting takes one of 4"):
        draw({StableDiffusion3InpaintPipeline: pipe}, StableDiffusion3InpaintPipeline)


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_latents_as_the_picture(task):
    vae = ppsd3.AutoencoderKL(**{**tiny.VAE, "latent_channels": 16})
    components = {**tiny.make_components(in_channels=16, out_channels=16), "vae": vae}
    pipe = getattr(ppsd3, f"StableDiffusion3{task}Pipeline")(**components)
    latents = paddle.to_tensor(np.random.RandomState(0).randn(1, 16, 16, 16).astype("float32"))
    own = {"mask_image": mask()} if task == "Inpaint" else {}
    settings = {"num_inference_steps": 4, "output_type": "latent", "generator": TorchGenerator(3)}
    assert pipe(PROMPT, image=latents, **own, **settings).images.shape == [1, 16, 16, 16]


def test_latents_cannot_be_masked(pipes):
    with pytest.raises(InputError, match="cannot be masked"):
        draw(pipes, "reads mask", image=paddle.zeros([1, 4, 16, 16]))


def test_from_pipe_takes_reader_and_caches_along(pipes):
    first = StableDiffusion3Pipeline.from_pipe(pipes[StableDiffusion3Pipeline])
    first.prompt_reader = ppsd3.WeightedPrompts()
    first.enable_cache(ppsd3.TaylorCache())
    other = StableDiffusion3Img2ImgPipeline.from_pipe(first)
    assert other.prompt_reader is first.prompt_reader and other._cache is first._cache


def test_from_pipe_shares_components(pipes, tmp_path):
    first = pipes[StableDiffusion3Pipeline]
    for class_, made in (
        (StableDiffusion3Img2ImgPipeline, AutoPipelineForImage2Image),
        (StableDiffusion3InpaintPipeline, AutoPipelineForInpainting),
        (StableDiffusion3Pipeline, AutoPipelineForText2Image),
    ):
        other = made.from_pipe(first)
        assert type(other) is class_
        assert all(other.components[name] is part for name, part in first.components.items())
    first.save_pretrained(tmp_path)
    assert type(AutoPipelineForInpainting.from_pretrained(tmp_path)) is StableDiffusion3InpaintPipeline
    with pytest.raises(InputError, match="has to be a DiffusionPipeline"):
        StableDiffusion3Pipeline.from_pipe("shapes")
    with pytest.raises(InputError, match="which task"):
        ppsd3.DiffusionPipeline.from_pipe(first)
    with pytest.raises(InputError, match="from_pretrained"):
        AutoPipelineForText2Image()


def test_pag_by_the_auto_pipeline(pipes, tmp_path):
    first = pipes[StableDiffusion3Pipeline]
    first.save_pretrained(tmp_path / "plain")
    layers = ["blocks.0", "blocks.2"]
    pag = AutoPipelineForText2Image.from_pretrained(tmp_path / "plain", enable_pag=True, pag_applied_layers=layers)
    assert type(pag) is StableDiffusion3PAGPipeline and pag.pag_applied_layers == layers
    assert type(AutoPipelineForText2Image.from_pretrained(tmp_path / "plain")) is StableDiffusion3Pipeline
    pag.set_progress_bar_config(disable=True)
    task, guidance = StableDiffusion3PAGPipeline, ppsd3.PerturbedAttentionGuidance(7.0, layers, 2.0)
    expected = draw(pipes, StableDiffusion3Pipeline, guidance=guidance)
    assert np.array_equal(draw({task: pag}, task), expected)
    assert np.abs(draw(pipes, task) - expected).max() > 1e-3  # of other layers

    pag.save_pretrained(tmp_path / "pag")  # with its layers
    for load in (ppsd3.DiffusionPipeline, AutoPipelineForText2Image, StableDiffusion3PAGPipeline):
        again = load.from_pretrained(tmp_path / "pag")
        assert type(again) is task and again.pag_applied_layers == layers
    again = AutoPipelineForText2Image.from_pretrained(tmp_path / "pag", pag_applied_layers=1)
    assert again.pag_applied_layers == 1
    for options in ({"enable_pag": False}, {}):
        plain = (AutoPipelineForText2Image if options else StableDiffusion3Pipeline).from_pretrained(
            tmp_path / "pag", **options
        )
        assert type(plain) is StableDiffusion3Pipeline
    redraw = AutoPipelineForImage2Image.from_pretrained(tmp_path / "pag")
    assert type(redraw) is StableDiffusion3PAGImg2ImgPipeline and redraw.pag_applied_layers == layers
    assert type(AutoPipelineForImage2Image.from_pipe(first, enable_pag=True)) is StableDiffusion3PAGImg2ImgPipeline
    plain = AutoPipelineForImage2Image.from_pretrained(tmp_path / "pag", enable_pag=False)
    assert type(plain) is StableDiffusion3Img2ImgPipeline
    for inpaint in (
        AutoPipelineForInpainting.from_pretrained(tmp_path / "pag"),
        AutoPipelineForInpainting.from_pipe(pag),
    ):
        assert type(inpaint) is StableDiffusion3InpaintPipeline  # which has no such class of its own

    assert type(AutoPipelineForText2Image.from_pipe(first, enable_pag=True)) is task
    assert AutoPipelineForText2Image.from_pipe(pag).pag_applied_layers == layers
    assert type(AutoPipelineForText2Image.from_pipe(pag, enable_pag=False)) is StableDiffusion3Pipeline
    file = ppsd3.convert(tmp_path / "plain", tmp_path / "one.safetensors")
    one = task.from_single_file(file, config=tmp_path / "plain", pag_applied_layers="blocks.2")
    assert one.pag_applied_layers == "blocks.2"
    for make in (AutoPipelineForInpainting.from_pipe, AutoPipelineForInpainting.from_pretrained):
        with pytest.raises(InputError, match="guidance=PerturbedAttentionGuidance"):
            make(first if make.__name__ == "from_pipe" else tmp_path / "plain", enable_pag=True)
    with pytest.raises(InputError, match=r"has no argument 'pag_applied_layers'"):
        AutoPipelineForText2Image.from_pretrained(tmp_path / "plain", pag_applied_layers=1)
