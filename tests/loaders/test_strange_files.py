"""Whatever people bring, and whichever door they bring it to: the error names the file, what it is, and the remedy."""

import json
import re
import shutil

import pytest
from helpers import strangers, tiny

import ppsd3
from ppsd3.cli.main import main
from ppsd3.loaders.conversion import convert
from ppsd3.modeling_utils import to_be_filled
from ppsd3.utils.errors import PPSD3Error

SINGLE_FILE = {
    "pipeline": lambda path, _: ppsd3.StableDiffusion3Pipeline.from_single_file(path),
    "transformer": lambda path, _: ppsd3.SD3Transformer2DModel.from_single_file(path),
    "VAE": lambda path, _: ppsd3.AutoencoderKL.from_single_file(path),
    "CLIP": lambda path, _: ppsd3.CLIPTextModelWithProjection.from_single_file(path, subfolder="text_encoder"),
    "T5": lambda path, _: ppsd3.T5EncoderModel.from_single_file(path),
    "ControlNet": lambda path, _: ppsd3.SD3ControlNetModel.from_single_file(path),
}
DIRECTORY = {
    "pipeline's directory": lambda path, _: ppsd3.StableDiffusion3Pipeline.from_pretrained(path),
    "any pipeline's directory": lambda path, _: ppsd3.DiffusionPipeline.from_pretrained(path),
    "transformer's directory": lambda path, _: ppsd3.SD3Transformer2DModel.from_pretrained(path),
    "tokenizer's directory": lambda path, _: ppsd3.CLIPTokenizer.from_pretrained(path),
    "T5 tokenizer's directory": lambda path, _: ppsd3.T5Tokenizer.from_pretrained(path),
    "scheduler's directory": lambda path, _: ppsd3.FlowMatchEulerDiscreteScheduler.from_pretrained(path),
}
ADAPTER = {
    "LoRA": lambda path, pipe: pipe.load_lora_weights(path),
    "word": lambda path, pipe: pipe.load_textual_inversion(path),
    "IP-adapter": lambda path, pipe: pipe.load_ip_adapter(path, image_encoder_folder=None),
}
OTHER = {"convert": lambda path, _: convert(path, path + ".new.safetensors")}
DOORS = {**SINGLE_FILE, **DIRECTORY, **ADAPTER, **OTHER}


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def refusal(door, path, pipe):
    """The message of the error at a door."""
    with pytest.raises(PPSD3Error) as caught:
        door(str(path), pipe)
    return " ".join(str(caught.value).split())


def wrong(message, path, what, remedy):
    """What a message lacks."""
    missing = [str(path)] if str(path) not in message else []
    return missing + [part for part in (what, remedy) if not re.search(part, message)]


@pytest.mark.parametrize("door", DOORS)
def test_a_strange_file_is_named_with_its_kind_and_the_remedy(tmp_path, pipe, door):
    faults = []
    for kind, (name, content, what, remedy) in strangers.FILES.items():
        if door == "convert" and kind == "pdparams":
            continue  # the one pickle that it reads
        path = tmp_path / name
        path.write_bytes(content)
        message = refusal(DOORS[door], path, pipe)
        lacks = wrong(message, path, what, remedy)
        faults += [f"{kind}: no {lacks} in {message}"] if lacks else []
        path.unlink()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "option, kinds",
    [
        ("--model", ["GGUF of FLUX.1", "a torch archive", "a web page"]),
        ("--lora", ["LoRA of Stable Diffusion 1, LoHa"]),
    ],
)
def test_the_program_says_the_same(tmp_path, capsys, option, kinds):
    for kind in kinds:
        name, content, what, remedy = strangers.FILES[kind]
        path = tmp_path / name
        path.write_bytes(content)
        code = main(["generate", "a cat", option, str(path), "--steps", "1", "--output", str(tmp_path / "x.png")])
        message = capsys.readouterr().err
        assert code == 2 and not wrong(message, path, what, remedy), message


def test_info_says_it_without_complaint(tmp_path, capsys):
    some = dict(list(strangers.TENSORS.items())[::3])  # the other doors take all of them
    for kind, (name, content, what, remedy) in {**strangers.OTHERS, **some}.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert main(["info", str(path)]) == 0, kind
        assert not wrong(capsys.readouterr().out, path, what, remedy), kind
        path.unlink()


@pytest.mark.parametrize("name", ["sd3.bin", "sd3.ckpt", "sd3.pt", "sd3"])
def test_safetensors_by_any_name(tmp_path, pipe, name):
    pipe.transformer.save_pretrained(tmp_path)
    path = (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / name)
    loaded = ppsd3.SD3Transformer2DModel.from_single_file(path, config=tmp_path)
    assert loaded.config.num_layers == tiny.TRANSFORMER["num_layers"]


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt"])
def test_a_lora_by_any_name(tmp_path, pipe, name):
    shapes = {"lora_A": (2, 32), "lora_B": (32, 2)}
    content = {f"transformer.transformer_blocks.0.attn.to_q.{part}.weight": shape for part, shape in shapes.items()}
    (tmp_path / name).write_bytes(strangers.safetensors(content))
    pipe.load_lora_weights(tmp_path / name)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, weight_name=name)
    pipe.unload_lora_weights()


DIRECTORIES = {  # door -> role
    "pipeline's directory": "pipeline",
    "any pipeline's directory": "pipeline",
    "transformer's directory": "transformer",
    "scheduler's directory": "scheduler",
    "tokenizer's directory": "tokenizer",
}


@pytest.mark.parametrize("door", DIRECTORIES)
def test_directories_one_level_off(tiny_checkpoint, pipe, door):
    """The parent, a part of the pipeline, and the pipeline where a part is needed."""
    parts = [tiny_checkpoint, *(tiny_checkpoint / name for name in ("transformer", "vae", "scheduler", "tokenizer"))]
    for path in parts:
        if path.name == DIRECTORIES[door] or (path == tiny_checkpoint and DIRECTORIES[door] == "pipeline"):
            continue
        message = refusal(DOORS[door], path, pipe)
        assert str(path) in message and re.search(r"from_pretrained\(\)|check `subfolder`|Pass ", message), message
    message = refusal(DOORS[door], tiny_checkpoint.parent, pipe)
    assert f"Pass {tiny_checkpoint}." in message, message


def test_subfolders_with_a_typo(tiny_checkpoint):
    for class_, typo, meant in (
        (ppsd3.SD3Transformer2DModel, "transfomer", "transformer"),
        (ppsd3.CLIPTokenizer, "tokeniser", "tokenizer"),
        (ppsd3.FlowMatchEulerDiscreteScheduler, "sheduler", "scheduler"),
    ):
        with pytest.raises(PPSD3Error, match=f"Did you mean {meant!r}") as caught:
            class_.from_pretrained(tiny_checkpoint, subfolder=typo)
        assert str(tiny_checkpoint / typo) in str(caught.value)


class TestPipelines:
    """A directory whose files are strange: said at the pipeline's door and at the network's."""

    @pytest.fixture
    def directory(self, tiny_checkpoint, tmp_path):
        return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")

    def loads(self, directory):
        yield lambda: ppsd3.StableDiffusion3Pipeline.from_pretrained(directory)
        yield lambda: ppsd3.SD3Transformer2DModel.from_pretrained(directory, subfolder="transformer")
        yield lambda: convert(directory, f"{directory}.new")

    def refused(self, directory, says):
        for load in self.loads(directory):
            with pytest.raises(PPSD3Error, match=says) as caught:
                load()
            assert str(directory / "transformer") in str(caught.value)

    @pytest.mark.parametrize(
        "kind", ["a web page", "an LFS pointer", "a torch archive", "empty", "zeros", "GGUF of SD3"]
    )
    def test_strange_weights(self, directory, kind):
        _, content, what, remedy = strangers.FILES[kind]
        (directory / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(content)
        self.refused(directory, f"(?s){what}.*({remedy})")

    def test_weights_that_the_cache_has_lost(self, directory):
        weights = directory / "transformer" / "diffusion_pytorch_model.safetensors"
        weights.unlink()
        weights.symlink_to("../../../blobs/4d7a")
        self.refused(directory, r"is a link to ../../../blobs/4d7a.*force_download=True")

    def test_a_download_under_way(self, directory):
        weights = directory / "transformer" / "diffusion_pytorch_model.safetensors"
        weights.rename(f"{weights}.incomplete")
        self.refused(directory, r"a download that has not ended.*Let it end")

    def test_weights_of_another_model(self, directory):
        weights = directory / "transformer" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(strangers.FILES["network of FLUX.1 of diffusers"][1])
        self.refused(directory, r"network of FLUX.1.*diffusers' FluxPipeline")

    def test_quantized_weights(self, directory):
        name = "transformer_blocks.0.attn.to_q.weight"
        content = {name: ("U8", (512, 1)), f"{name}.quant_state.bitsandbytes__nf4": ("U8", (9,))}
        weights = directory / "transformer" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(strangers.safetensors(content))
        self.refused(directory, r"is quantized by bitsandbytes, in nf4.*quantize\('int8'\)")

    @pytest.mark.parametrize("name", ["FluxTransformer2DModel", "UNet2DConditionModel", "WanTransformer3DModel"])
    def test_a_network_of_another_model(self, directory, name):
        self.edit(directory / "transformer" / "config.json", _class_name=name)
        for load in list(self.loads(directory))[:2]:
            with pytest.raises(PPSD3Error, match=rf"config.json is for .*\({name}\).*stable-diffusion-3.5"):
                load()

    def test_another_network_than_the_class(self, directory):
        with pytest.raises(PPSD3Error, match=r"It is of a SD3Transformer2DModel: load it with its class"):
            ppsd3.AutoencoderKL.from_pretrained(directory, subfolder="transformer")

    @pytest.mark.parametrize("channels, scaling", [(8, (1.5305, 0.0609)), (4, (0.3611, 0.1159))])
    def test_a_vae_of_another_model(self, pipe, channels, scaling):
        config = {**tiny.VAE, "latent_channels": channels, "scaling_factor": scaling[0], "shift_factor": scaling[1]}
        parts = {**pipe.components, "vae": ppsd3.AutoencoderKL(**config)}
        says = (
            "latent_channels=8, and the transformer has out_channels=4"
            if channels == 8
            else r"FLUX.1's, by its scaling_factor"
        )
        with pytest.raises(PPSD3Error, match=says):
            ppsd3.StableDiffusion3Pipeline(**parts)

    def test_text_encoders_of_another_size(self, pipe):
        t5 = ppsd3.T5EncoderModel(**{**tiny.T5, "d_model": 24})
        with pytest.raises(PPSD3Error, match=r"text_encoder_3 has d_model=24.*joint_attention_dim=40.*own checkpoint"):
            ppsd3.StableDiffusion3Pipeline(**{**pipe.components, "text_encoder_3": t5})
        with to_be_filled():
            clips = [ppsd3.CLIPTextModelWithProjection(hidden_size=width) for width in (1280, 768)]
        with pytest.raises(PPSD3Error, match="Exchange the two"):
            ppsd3.StableDiffusion3Pipeline(
                **{**pipe.components, **dict(zip(("text_encoder", "text_encoder_2"), clips))}
            )

    @staticmethod
    def edit(path, **entries):
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_missing_folder_is_not_looked_for_on_a_hub(tmp_path, monkeypatch):
    (tmp_path / "sd3").mkdir()
    (tmp_path / "sd3" / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppsd3.utils.hub._repository", lambda hub: pytest.fail("a hub was asked"))
    for class_, folder in (
        (ppsd3.SD3Transformer2DModel, "transformer"),
        (ppsd3.FlowMatchEulerDiscreteScheduler, "scheduler"),
        (ppsd3.CLIPTokenizer, "tokenizer"),
        (ppsd3.SiglipImageProcessor, "feature_extractor"),
    ):
        with pytest.raises(PPSD3Error, match=f"sd3/{folder}"):
            class_.from_pretrained("sd3", subfolder=folder)
