"""The files that the guide's reader has: images, checkpoints and adapters under the names that the pages use."""

import os
import pickle

import paddle
from PIL import Image, ImageDraw

import ppsd3
from ppsd3.cli.main import main
from ppsd3.utils.hub import BUNDLED

from . import ip_adapters, loras, paddle_directories, tiny
from .originals import T5_PREFIX, read, single_file, small_published_models, write

# Names of checkpoints, local or on the hub -> what stands in for them. A directory goes before a hub id of its name.
PIPELINES = (
    *("path/to/checkpoint", "path/to/sd3", "path/to/sd3.5-large", "path/to/stable-diffusion-3.5-medium"),
    "stabilityai/stable-diffusion-3.5-medium",
)
CONTROLNETS = "InstantX/SD3-Controlnet-Canny", "path/to/net"
IP_ADAPTERS = "guiyrt/InstantX-SD3.5-Large-IP-Adapter-diffusers", "path/to/adapter"
SIGLIP = "google/siglip-so400m-patch14-384"
CLIP_TOKENS = 49408


def make(directory):
    """Makes all of them in ``directory``."""
    _images(directory)
    for name in PIPELINES:
        _link(BUNDLED["shapes"], directory / name)
    for name in CONTROLNETS:
        _link(BUNDLED["shapes-silhouette"], directory / name)
    _training_data(directory)
    _adapters(directory)
    _single_files(directory)
    tiny_vae = ppsd3.AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )
    tiny_vae.save_pretrained(directory / "path/to/taesd3")
    (directory / "prompts.txt").write_text("a red circle\ntwo green triangles\n")
    assert (
        main(["generate", "a red circle", "--steps", "2", "--output", str(directory / "picture.png"), "--quiet"]) == 0
    )


def _link(target, name):
    name.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, name)


def _images(directory):
    side, box = (64, 64), (12, 12, 44, 44)
    photo, silhouettes, mask = Image.new("RGB", side, "white"), Image.new("RGB", side), Image.new("L", side)
    ImageDraw.Draw(photo).ellipse(box, fill="red")
    ImageDraw.Draw(silhouettes).ellipse(box, fill="white")
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    for name, image in {"photo": photo, "edges": silhouettes, "silhouettes": silhouettes, "mask": mask}.items():
        image.save(directory / f"{name}.png")


def _training_data(directory):
    (directory / "dogs").mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), (90 * i, 60, 30)).save(directory / "dogs" / f"{i}.png")
        (directory / "dogs" / f"{i}.txt").write_text(f"dog number {i}")
    (directory / "scenes").mkdir()
    Image.new("RGB", (64, 64), "white").save(directory / "scenes" / "1.png")
    Image.new("RGB", (64, 64)).save(directory / "scenes" / "edges.png")
    row = '{"file_name": "1.png", "text": "a house", "edges": "edges.png"}'
    (directory / "scenes" / "metadata.jsonl").write_text(row)


def _adapters(directory):
    pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
    for seed, name in enumerate(("style", "hero")):
        write(directory / f"{name}.safetensors", loras.for_pipeline(pipe, seed))
    paddle_directories.write_pipeline(directory / "from-ppdiffusers", pipe)
    paddle_directories.write_pipeline(directory / "pickles-of-ppdiffusers", pipe, "pickle", "paddlenlp")
    adapter = {k: v.T for k, v in loras.for_pipeline(pipe).items() if k.startswith("transformer.")}
    (directory / "paddle_lora_weights.pdparams").write_bytes(pickle.dumps(adapter, 4))
    towers = {"clip_l": pipe.text_encoder, "clip_g": pipe.text_encoder_2}
    vectors = {name: tower.get_input_embeddings().weight[:2].numpy() for name, tower in towers.items()}
    write(directory / "cat.safetensors", vectors)
    config = pipe.transformer.config
    width = config.attention_head_dim * config.num_attention_heads
    for name in IP_ADAPTERS:
        ip_adapters.write(directory / name, config.num_layers, width=width, head_dim=config.attention_head_dim)
    _link(directory / IP_ADAPTERS[0] / "image_encoder", directory / SIGLIP)


def _single_files(directory):
    """Published ones: CLIP's whole vocabulary, no configuration."""
    networks = small_published_models()
    for name in ("text_encoder", "text_encoder_2"):
        config = {**networks[name].config, "vocab_size": CLIP_TOKENS, "bos_token_id": CLIP_TOKENS - 2}
        networks[name] = ppsd3.CLIPTextModelWithProjection(**{**config, "eos_token_id": CLIP_TOKENS - 1})
    networks["text_encoder"].text_projection.weight.set_value(paddle.eye(64))
    tokenizers = {"tokenizer": ppsd3.CLIPTokenizer.published(), "tokenizer_2": ppsd3.CLIPTokenizer.published("!")}
    pipe = ppsd3.StableDiffusion3Pipeline(**{**tiny.make_components(), **networks, **tokenizers})
    pipe.save_pretrained(directory / "path/to/sd3.5")
    _link(directory / "path/to/sd3.5/tokenizer_3", directory / "path/to/t5")

    everything = single_file(directory / "path/to/sd3.5", directory / "sd3_medium_incl_clips_t5xxlfp8.safetensors")
    tensors = read(everything)
    without_t5 = {name: value for name, value in tensors.items() if not name.startswith(T5_PREFIX)}
    write(directory / "sd3_medium_incl_clips.safetensors", without_t5)
    no_text = {name: value for name, value in tensors.items() if not name.startswith("text_encoders.")}
    for name in ("sd3.5_medium", "sd3.5_large"):
        write(directory / f"{name}.safetensors", no_text)
    for file, prefix in {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl_fp8_e4m3fn": "t5xxl"}.items():
        prefix = f"text_encoders.{prefix}.transformer."
        own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        write(directory / f"{file}.safetensors", own)
