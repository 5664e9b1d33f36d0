"""The IP-adapter's parts, and pictures drawn with it, are those of diffusers."""

import numpy as np
import paddle
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers", minversion="4.40")

import diffusers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from helpers import ip_adapters, reference, tiny
from helpers.reference import levels, load_both

import ppsd3

pytestmark = pytest.mark.parity

PROMPT = "a red circle to the left of a blue square!"
MODELS = {"medium": {**tiny.SD35, "attentions": 5}, "large": {"qk_norm": "rms_norm", "attentions": 3}}


def picture(seed=0, size=(64, 64)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype="uint8"))
    return small.resize(size, Image.Resampling.BICUBIC)


def mask():
    array = np.zeros((64, 64), "uint8")
    array[16:48, 8:40] = 255
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("checkpoints"), {}
    for name, settings in MODELS.items():
        settings = dict(settings)
        count = settings.pop("attentions")
        vae = {"latent_channels": 16, "shift_factor": 0.0}  # diffusers' inpainting decodes without the shift
        reference.write_checkpoint(root / name, vae=vae, in_channels=16, out_channels=16, **settings)
        made[name] = root / name, ip_adapters.write(root / f"{name} adapter", count)
    return made


def give_both(ours, theirs, adapter, scale):
    ours.load_ip_adapter(adapter)
    # its image encoder is set first: diffusers looks for a local one in the wrong place
    theirs.register_modules(
        image_encoder=transformers.SiglipVisionModel.from_pretrained(adapter / "image_encoder", dtype=torch.float32),
        feature_extractor=transformers.SiglipImageProcessor.from_pretrained(adapter / "image_encoder"),
    )
    theirs.load_ip_adapter(str(adapter), weight_name=ip_adapters.FILE)
    for pipe in (ours, theirs):
        pipe.set_ip_adapter_scale(scale)


def draw(pipe, make_generator, **settings):
    settings = {"prompt": PROMPT, "num_inference_steps": 4, "height": 64, "width": 64, **settings}
    return levels(pipe(**settings, generator=make_generator(3)).images)


def relative(ours, theirs):
    ours, theirs = ours.numpy(), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


CASES = {
    "text to image": ("", {}),
    "no guidance": ("", {"guidance_scale": 1.0}),
    "image to image": ("Img2Img", {"image": picture(1)}),
    "inpainting": ("Inpaint", {"image": picture(1), "mask_image": mask()}),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CASES)
def test_pictures(checkpoints, name, model):
    task, settings = CASES[name]
    directory, adapter = checkpoints[model]
    ours, theirs = load_both(directory, task)
    plain = draw(ours, ppsd3.TorchGenerator, **settings)
    give_both(ours, theirs, adapter, 0.8)
    settings = {**settings, "ip_adapter_image": picture(2, (50, 40))}
    mine, other = draw(ours, ppsd3.TorchGenerator, **settings), draw(theirs, reference.generator, **settings)
    assert np.abs(mine - other).max() <= 1
    assert np.abs(mine - plain).max() > 10  # the adapter acts


def test_embeds_and_two_pictures(checkpoints):
    directory, adapter = checkpoints["large"]
    ours, theirs = load_both(directory, "")
    give_both(ours, theirs, adapter, 0.5)
    mine = ours.prepare_ip_adapter_image_embeds(picture(2))
    other = theirs.prepare_ip_adapter_image_embeds(picture(2), device="cpu")
    assert relative(mine, other) <= 1e-5
    settings = {"num_images_per_prompt": 2}
    ours_drawn = draw(ours, ppsd3.TorchGenerator, ip_adapter_image_embeds=mine, **settings)
    theirs_drawn = draw(theirs, reference.generator, ip_adapter_image_embeds=other, **settings)
    assert np.abs(ours_drawn - theirs_drawn).max() <= 1


@pytest.mark.parametrize("original", [False, True], ids=["diffusers", "InstantX"])
def test_transformer_with_a_picture(checkpoints, original):
    """The projection, each processor, and the whole transformer, under both kinds of names."""
    from safetensors.torch import load_file

    directory, adapter = checkpoints["medium"]
    ours, theirs = load_both(directory, "")
    named = {name: tensor.numpy() for name, tensor in load_file(adapter / ip_adapters.FILE).items()}
    named = ip_adapters.with_original_names(named) if original else named
    parts = {"image_proj": {}, "ip_adapter": {}}
    for name, value in named.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = torch.from_numpy(value)
    ours.load_ip_adapter(parts, image_encoder_folder=None)
    theirs.load_ip_adapter(parts, image_encoder_folder=None)
    rng = np.random.default_rng(0)

    def both(*shape):
        array = rng.standard_normal(shape).astype("float32")
        return paddle.to_tensor(array), torch.from_numpy(array)

    embeds, latents = both(2, 16, 24), both(2, 16, 16, 16)
    text, pooled = both(2, 9, 40), both(2, 28)
    times = paddle.to_tensor([987.5, 20.25]), torch.tensor([987.5, 20.25])
    with torch.no_grad():
        picture_tokens = ours.transformer.ip_adapter(embeds[0], times[0])
        tokens, temb = theirs.transformer.image_proj(embeds[1], times[1])
        their_tokens = {"ip_hidden_states": tokens, "temb": temb}
        for name, value in their_tokens.items():
            assert relative(picture_tokens[name], value) <= 1e-5
        image, caption = both(2, 64, 32), both(2, 9, 32)
        our_layers, their_layers = dict(ours.transformer.named_sublayers()), dict(theirs.transformer.named_modules())
        names = [name.rsplit(".", 1)[0] for name in ours.transformer.attn_processors]
        assert len(names) == 5
        for name in names:
            given = (image,) if name.endswith("attn2") else (image, caption)
            got = our_layers[name](*(pair[0] for pair in given), **picture_tokens)
            want = their_layers[name](*(pair[1] for pair in given), **their_tokens)
            if len(given) == 1:
                assert relative(got, want) <= 1e-5
            else:
                assert relative(got[0], want[0]) <= 1e-5
                assert got[1] is None or relative(got[1], want[1]) <= 1e-5
        kwargs = {"joint_attention_kwargs": {"ip_adapter_image_embeds": embeds[1]}}
        want = theirs.transformer(latents[1], text[1], pooled[1], times[1], **kwargs).sample
    kwargs = {"joint_attention_kwargs": {"ip_adapter_image_embeds": embeds[0]}}
    assert relative(ours.transformer(latents[0], text[0], pooled[0], times[0], **kwargs).sample, want) <= 1e-5


def test_together_with_a_controlnet(checkpoints, tmp_path, monkeypatch):
    # diffusers encodes control pictures with torch's global generator; here both take the mean
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    net = {**tiny.TRANSFORMER, "in_channels": 16, "num_layers": 2, "extra_conditioning_channels": 0}
    reference.randomize(diffusers.SD3ControlNetModel(**net), 20, 0.5).save_pretrained(tmp_path)
    directory, adapter = checkpoints["large"]
    pipes = [
        library.StableDiffusion3ControlNetPipeline.from_pretrained(
            directory, controlnet=library.SD3ControlNetModel.from_pretrained(tmp_path), **options
        )
        for library, options in ((ppsd3, {}), (diffusers, {"dtype": torch.float32}))
    ]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    give_both(*pipes, adapter, 0.8)
    settings = {"control_image": picture(1), "ip_adapter_image": picture(2)}
    mine, other = (draw(p, make, **settings) for p, make in zip(pipes, (ppsd3.TorchGenerator, reference.generator)))
    assert np.abs(mine - other).max() <= 1


def test_what_we_save_diffusers_loads(checkpoints, tmp_path):
    directory, adapter = checkpoints["large"]
    ours, _ = load_both(directory, "")
    ours.load_ip_adapter(adapter)
    ours.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_ip_adapter(str(adapter), weight_name=ip_adapters.FILE)
    settings = {"ip_adapter_image": picture(2)}
    assert (
        np.abs(draw(ours, ppsd3.TorchGenerator, **settings) - draw(theirs, reference.generator, **settings)).max() <= 1
    )
