"""Pictures of every mode, for every argument of every task: the values that the networks read, or a refusal by name."""

import inspect

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, pictures, tiny
from PIL import Image

import ppsd3
from ppsd3 import SD3CannyImageProcessor, SD3ControlNetModel, VaeImageProcessor
from ppsd3.pipelines.call_signature import Pictures, PicturesOfEach
from ppsd3.pipelines.component_classes import PIPELINE_CLASSES
from ppsd3.pipelines.stable_diffusion_3.control import Control
from ppsd3.transformers import SiglipImageProcessor
from ppsd3.utils.errors import InputError

ARGUMENTS = [
    (name, argument.name)
    for name in PIPELINE_CLASSES
    for argument in getattr(ppsd3, name).call_arguments()
    if argument.type in (Pictures, PicturesOfEach)
]
CONTROL = {**tiny.TRANSFORMER, "num_layers": 2}


def net(extra=0):
    made = tiny.randomize(SD3ControlNetModel(**CONTROL, extra_conditioning_channels=extra), 30, 0.5)
    made.eval()
    return made


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    first, made = tiny.make_pipeline(qk_norm="rms_norm", dual_attention_layers=(0,)), {}
    first.load_ip_adapter(ip_adapters.write(tmp_path_factory.mktemp("ip") / "adapter", 4))
    for name in PIPELINE_CLASSES:
        parts = {"controlnet": net(extra=int("Inpainting" in name))} if "ControlNet" in name else {}
        made[name] = getattr(ppsd3, name).from_pipe(first, **parts)
    return made


class Seen(Exception):
    """Ends a call when the picture in question has been read."""


@pytest.fixture
def read(pipes, monkeypatch):
    """(pipeline, argument, picture) -> what the networks read of it: pixels in 0 to 255 [H, W, 3], or a mask [H, W]."""

    def call(name, argument, picture):
        own = {"image": Image.new("RGB", (64, 64), "gray"), "mask_image": Image.new("L", (64, 64), 255)}
        own.update(control_image=own["image"], control_mask=own["mask_image"])
        settings = {key: value for key, value in own.items() if (name, key) in ARGUMENTS}
        skipped = 1 if argument == "control_image" and "image" in settings else 0
        seen, preprocess, extract = [], VaeImageProcessor.preprocess, SiglipImageProcessor.__call__

        def note(self, *arguments, **options):
            pixels = preprocess(self, *arguments, **options)
            if argument != "ip_adapter_image" and self.config.do_convert_grayscale == ("mask" in argument):
                seen.append(pixels)
                if len(seen) > skipped:
                    raise Seen
            return pixels

        def note_prompt(self, *arguments, **options):
            seen.append(extract(self, *arguments, **options).pixel_values)
            raise Seen

        with monkeypatch.context() as patch:
            patch.setattr(VaeImageProcessor, "preprocess", note)
            patch.setattr(SiglipImageProcessor, "__call__", note_prompt)
            with pytest.raises(Seen):
                pipes[name]("a red circle", **{**settings, argument: picture}, num_inference_steps=2)
        (row,) = seen[-1].numpy()
        return row[0] if "mask" in argument else (row.transpose(1, 2, 0) + 1) * 127.5

    return call


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_every_mode(read, pipes, name, argument):
    few = argument == "ip_adapter_image" and name != "StableDiffusion3Pipeline"  # one way for all tasks
    for mode in ("RGBA", "I;16") if few else pictures.MODES:
        picture, expected, transparent = pictures.MODES[mode]
        if transparent and "mask" in argument:
            with pytest.raises(InputError, match=f"`{argument}` is a mask with transparent parts"):
                read(name, argument, picture)
            continue
        found = read(name, argument, picture)
        if "mask" in argument:
            expected = np.asarray(Image.fromarray(expected).convert("L")) > 127
            assert np.array_equal(found > 0.5, expected), mode
        elif argument == "ip_adapter_image":  # another size: the middles of the quarters
            assert np.abs(found[5::14, 5::14] - expected[16::32, 16::32]).max() <= 3 + pictures.TOLERANCE.get(mode, 0)
        else:
            assert np.abs(found - expected).max() <= 1e-3 + pictures.TOLERANCE.get(mode, 0), mode


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_orientation_and_refusals(read, name, argument):
    exif = Image.Exif()
    exif[0x0112] = 3
    source = pictures.greys() if "mask" in argument else pictures.colours()
    turned = Image.open(pictures.io.BytesIO(pictures.encoded(source, exif=exif)))
    expected = read(name, argument, source)[::-1, ::-1]
    assert np.abs(read(name, argument, turned) - expected).max() < 2
    damaged = Image.open(pictures.io.BytesIO(pictures.encoded(Image.effect_noise((64, 64), 90))[:900]))
    refused = [damaged, np.full((64, 64), 200.0), "x.png", [], Image.new("L", (0, 0)), np.zeros((64, 64), "int64")]
    for wrong in [*refused, np.full((64, 64), np.nan)]:
        with pytest.raises(InputError, match=f"`{argument}`"):
            read(name, argument, wrong)


def test_the_options_of_masks_are_known():
    """The command line reads an argument as a mask by its name."""
    masks = {argument for _, argument in ARGUMENTS if "mask" in argument}
    assert masks == {"mask_image", "control_mask"}
    assert {argument for _, argument in ARGUMENTS} - masks == {"image", "control_image", "ip_adapter_image"}


def test_diffusers_ways_stay(read):
    """A tensor in [-1, 1] is not scaled again; masks of bool and lists are taken."""
    tensor = paddle.linspace(-1, 1, 3 * 64 * 64).reshape([1, 3, 64, 64])
    name = "StableDiffusion3InpaintPipeline"
    found = read(name, "image", tensor)
    assert np.array_equal(found, (tensor[0].numpy().transpose(1, 2, 0) + 1) * 127.5)
    mask = np.eye(64, dtype=bool)
    for form in (mask, [mask], mask[None], mask.astype("uint8") * 255, paddle.to_tensor(mask), Image.fromarray(mask)):
        assert np.array_equal(read(name, "mask_image", form) > 0.5, mask)


# -------------------------------------------------------------------------------------------- a processor for each net


def hints(pipe, monkeypatch, **settings):
    """What each ControlNet of a call reads."""
    seen, made = [], Control.__init__

    def keep(self, hint, *arguments):
        seen.append(hint.numpy())
        made(self, hint, *arguments)

    monkeypatch.setattr(Control, "__init__", keep)
    pipe("a red circle", num_inference_steps=1, output_type="latent", **settings)
    monkeypatch.undo()
    return seen


def test_one_processor_for_each_controlnet(pipes, monkeypatch):
    plain = pipes["StableDiffusion3Pipeline"]
    pipe = ppsd3.StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=[net(), net()])
    pipe.set_progress_bar_config(disable=True)
    factor = pipe.vae_scale_factor
    both = {"control_image": [pictures.colours(), pictures.colours()]}
    first, second = hints(pipe, monkeypatch, **both)
    assert np.array_equal(first, second)
    pipe.control_image_processor = [
        VaeImageProcessor(vae_scale_factor=factor),
        SD3CannyImageProcessor(vae_scale_factor=factor),
    ]
    same, other = hints(pipe, monkeypatch, **both)
    assert np.array_equal(first, same) and np.abs(other - first).max() > 0.1
    for wrong in ([VaeImageProcessor()], [VaeImageProcessor(), None], None):
        pipe.control_image_processor = wrong
        with pytest.raises(InputError, match=r"control_image_processor.*list of 2"):
            hints(pipe, monkeypatch, **both)


def test_a_mask_goes_to_the_nets_that_read_it(pipes, monkeypatch):
    plain = pipes["StableDiffusion3Pipeline"]
    inpainting = ppsd3.StableDiffusion3ControlNetInpaintingPipeline
    pipe = inpainting.from_pipe(plain, controlnet=[net(extra=1), net()])
    pipe.set_progress_bar_config(disable=True)
    both = {"control_image": [pictures.colours(), pictures.colours()], "control_mask": Image.new("L", (64, 64), 255)}
    masked, whole = hints(pipe, monkeypatch, **both)
    assert masked.shape[1] == whole.shape[1] + 1
    alone = ppsd3.StableDiffusion3ControlNetPipeline.from_pipe(plain, controlnet=net())
    alone.set_progress_bar_config(disable=True)
    assert np.array_equal(hints(alone, monkeypatch, control_image=pictures.colours())[0], whole)


def test_arguments_are_all_here():
    for name in PIPELINE_CLASSES:
        parameters = inspect.signature(getattr(ppsd3, name).__call__).parameters
        found = {p for p in parameters if p.endswith(("image", "mask")) and "embeds" not in p}
        assert found == {argument for pipe, argument in ARGUMENTS if pipe == name}
