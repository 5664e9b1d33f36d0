"""``ppsd3 info``: what a checkpoint or a file holds, read from headers."""

import json
import shutil

import numpy as np
import paddle
import pytest
from helpers import gpus, loras, originals, tiny
from PIL import Image

import ppsd3
from ppsd3.adapters.keys import dialect
from ppsd3.cli import info, memory
from ppsd3.cli.main import main
from ppsd3.cli.png import save_png
from ppsd3.loaders.recognition import recognize
from ppsd3.ops import attention, native, use_native
from ppsd3.serialization.sd3_configs import published_name


def test_lists_components(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    assert main(["info", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "StableDiffusion3Pipeline" in shown and "float32" in shown
    for name in ("transformer", "vae", "text_encoder_3", "tokenizer_2", "scheduler"):
        assert f"\n{name} " in shown
    assert "fits" in shown and "does not fit" not in shown and "native CPU kernels: " in shown


def test_kinds_of_adapters_and_words_beside_them(tmp_path, capsys):
    block, patches = "transformer.joint_blocks.0.x_block.attn", "transformer.x_embedder.proj"
    vectors, norm = np.zeros((2, 768), "float32"), np.zeros(64, "float32")
    lora = {f"{block}.qkv.1.lora_down.weight": vectors[:, :8], f"{block}.qkv.1.lora_up.weight": vectors.T[:8]}
    lora[f"{patches}.lora_down.weight"] = np.zeros((4, 16, 2, 2), "float32")
    words = {"bundle_emb.<cat>.clip_l": vectors, "bundle_emb.<cat>.t5": vectors}
    for tensors, kind, facts in (
        (
            {**lora, **words},
            "LoRA), under the names of OneTrainer",
            ("too: <cat>", "1 keys of no layer here", "cat>.t5"),
        ),
        ({f"{block}.ln_q.w_norm": norm}, "norms)", ("transformer: 1 layers",)),
        ({f"{block}.proj.oft_blocks": np.zeros((12, 128, 128), "float32")}, "OFT)", ("transformer: 1 layers",)),
    ):
        assert main(["info", str(originals.write(tmp_path / "a.safetensors", tensors))]) == 0
        shown = capsys.readouterr().out
        assert f"an adapter ({kind}" in shown and all(fact in shown for fact in facts), shown


@pytest.mark.parametrize("enabled", [True, False])
def test_the_machine_alone(capsys, enabled):
    with use_native(enabled):
        assert main(["info"]) == 0
        in_use, detail = native.status()
    shown = capsys.readouterr().out
    assert f"native CPU kernels: {'in use' if in_use else 'not in use'} ({detail})" in shown
    assert "Paddle" in shown and "this process: " in shown and "CPU threads" in shown and "quantized_linear: " in shown
    if not in_use:
        assert "  matmul: reference" in shown and "  quantized_linear: reference" in shown
    assert main(["info", "--variant", "fp16"]) == 2
    assert "Name it first" in capsys.readouterr().err


def test_a_gpu_s_ways_and_what_they_have_proven(capsys, monkeypatch, tmp_path):
    native.status()  # compiled, if it is at all, into the cache of this run
    with gpus.StandInGPU(monkeypatch, tmp_path, capability=gpus.TURING):
        attention(*[paddle.ones([1, 16, 2, 8])] * 3)
        assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "attention: memory-efficient (float32, heads of 8: used) > in blocks" in shown
    assert (
        "compute capability 7.5; made for 9.0: flash 3; compute capability 7.5; made for 8.0 and later: flash)" in shown
    )
    assert "rms_norm: fused (not tried yet) > reference" in shown and "pipe.compile()" in shown


def test_counts_match_the_models(tiny_checkpoint):
    pipe = tiny.make_pipeline()
    for name in ("transformer", "vae", "text_encoder", "text_encoder_3"):
        model = getattr(pipe, name)
        part = info.read_component(str(tiny_checkpoint), name, type(model).__name__)
        tensors = [tensor for key, tensor in model.state_dict().items() if key not in model._tied_keys]
        assert part.values == sum(int(tensor.size) for tensor in tensors)
        assert part.bytes_on_disk > 4 * part.values and set(part.dtypes) == {"float32"}


def test_does_not_fit(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    main(["info", str(tiny_checkpoint)])
    assert "does not fit" in capsys.readouterr().out


def test_variant(tiny_checkpoint, tmp_path, capsys):
    ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint).to("float16").save_pretrained(tmp_path, variant="fp16")
    for arguments in ([], ["--variant", "fp16"]):
        assert main(["info", str(tmp_path), *arguments]) == 0
        assert "float16" in capsys.readouterr().out
    assert main(["info", str(tmp_path), "--variant", "bf16"]) == 2
    assert "bf16" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["class", "shard", "directory"])
def test_damaged(tiny_checkpoint, tmp_path, capsys, damage):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    if damage == "class":
        path = directory / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "vae": ["diffusers", "AutoencoderDC"]}))
    elif damage == "shard":
        file = directory / "vae" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    else:
        shutil.rmtree(directory / "vae")
    assert main(["info", str(directory)]) == 2
    assert "vae" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- files


def show(capsys, path, *arguments):
    """(exit code, all that was printed)"""
    code = main(["info", str(path), *arguments])
    return code, "".join(capsys.readouterr())


def test_a_single_file(tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "all.safetensors"
    originals.single_file(tiny_checkpoint, path)
    code, shown = show(capsys, path)
    assert code == 0 and "5 networks in one file, under the names of Stability AI" in shown
    pipe = tiny.make_pipeline()
    values = sum(getattr(pipe, name).num_parameters() for name in ("transformer", "vae"))
    counts = {part.name: part.values for part in recognize(path).components}
    positions = pipe.transformer.pos_embed.pos_embed  # a buffer, in the file too
    assert counts["transformer"] + counts["vae"] == values + int(positions.size)
    assert "StableDiffusion3Pipeline.from_single_file" in shown and "clip_l" not in shown
    assert "fits" in shown
    ppsd3.convert(tiny_checkpoint, path)
    assert "written by ppsd3" in show(capsys, path)[1]


def test_files_of_one_network_and_what_they_need(tmp_path, capsys):
    for name, model in originals.small_published_models().items():
        model.save_pretrained(tmp_path / name)
        file = next((tmp_path / name).glob("*.safetensors"))
        code, shown = show(capsys, file)
        assert code == 0 and type(model).__name__ in shown
        if name == "transformer":
            assert "vae='vae.safetensors', text_encoder='clip_l.safetensors'" in shown
        else:
            assert f"load it:\n  ppsd3.{type(model).__name__}.from_single_file('{file}'" in shown
        code, shown = show(capsys, tmp_path / name)
        assert code == 0 and f"ppsd3.{type(model).__name__}.from_pretrained" in shown


@pytest.mark.parametrize(
    "name, config, known",
    [
        ("transformer", {"num_layers": 24, "num_attention_heads": 24, "dual_attention_layers": ()}, "SD3-medium"),
        (
            "transformer",
            {
                "num_layers": 24,
                "num_attention_heads": 24,
                "qk_norm": "rms_norm",
                "dual_attention_layers": list(range(13)),
            },
            "SD3.5-medium",
        ),
        (
            "transformer",
            {"num_layers": 38, "num_attention_heads": 38, "qk_norm": "rms_norm", "dual_attention_layers": []},
            "SD3.5-large or SD3.5-large-turbo",
        ),
        ("vae", {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16}, "VAE of Stable Diffusion 3"),
        ("text_encoder_3", {"d_model": 4096, "num_layers": 24}, "T5-XXL"),
        ("text_encoder_3", {"d_model": 1024, "num_layers": 24}, None),
    ],
)
def test_published_names(name, config, known):
    assert published_name(name, config) == known


def test_adapters(tmp_path, capsys):
    pipe = tiny.make_pipeline()
    path = originals.write(tmp_path / "lora.safetensors", loras.for_pipeline(pipe))
    code, shown = show(capsys, path)
    assert code == 0 and "an adapter (LoRA), under the names of diffusers and PEFT" in shown
    assert "transformer: " in shown and "text_encoder_2: " in shown and "ranks: 3 (" in shown
    assert f"pipe.load_lora_weights('{path}')" in shown and "strict=False" not in shown and "memory" not in shown
    rows = np.zeros((4, 1536), "float32")
    keys = {
        "lora_unet_joint_blocks_23_x_block_attn2_qkv.lora_down.weight": rows,
        "lora_unet_joint_blocks_23_x_block_attn2_qkv.lora_up.weight": np.zeros((3 * 1536, 4), "float32"),
        "lora_te1_text_model_encoder_layers_11_mlp_fc1.dora_scale": rows[:1],
        "lora_unet_something_else.lora_up.weight": rows,
    }
    shown = show(capsys, originals.write(path, keys))[1]
    assert "DoRA" in shown and "kohya's sd-scripts" in shown and "made for: SD3.5-medium" in shown
    assert "1 keys of no layer here, e.g. lora_unet_something_else" in shown


@pytest.mark.parametrize(
    "key, name",
    [
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "diffusers and PEFT"),
        ("transformer.transformer_blocks.0.attn.processor.to_q_lora.down.weight", "diffusers before PEFT"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "kohya's sd-scripts"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight", "ComfyUI"),
        ("transformer.joint_blocks.0.x_block.attn.qkv.0.lora_down.weight", "OneTrainer"),
        ("lycoris_transformer_blocks_0_attn_to_q.hada_w1_a", "LyCORIS"),
    ],
)
def test_dialects(key, name):
    assert dialect(key) == name


def test_words_pictures_and_folders_of_them(tmp_path, capsys):
    both = {"clip_l": np.zeros((3, 768), "float32"), "clip_g": np.zeros((3, 1280), "float32")}
    path = originals.write(tmp_path / "cat.safetensors", both)
    code, shown = show(capsys, path)
    assert code == 0 and "clip_l: 3 vectors of width 768, for CLIP-L" in shown
    assert f"pipe.load_textual_inversion('{path}', token='<word>')" in shown
    originals.write(tmp_path / "dog.safetensors", {"<dog>": np.zeros(768, "float32")})
    code, shown = show(capsys, tmp_path)
    assert code == 0 and "cat.safetensors" in shown and "dog.safetensors')" in shown and "the word: <dog>" in shown
    picture = Image.new("RGB", (8, 8))
    save_png(picture, tmp_path / "x.png", {"prompt": "a cat", "seed": 7, "command": "img2img"})
    code, shown = show(capsys, tmp_path / "x.png")
    assert code == 0 and "a cat" in shown and "ppsd3 img2img --from-png" in shown and "--trust-png" not in shown
    hostile = {"prompt": "a \x1b[31mcat\nload it", "model": "shapes", "lora": ["\u202ex"], "command": "generate\x07"}
    save_png(picture, tmp_path / "x.png", hostile)
    code, shown = show(capsys, tmp_path / "x.png")
    assert code == 0 and "prompt: a \\x1b[31mcat\\nload it\n" in shown and "\\u202ex" in shown
    assert "if its lora may be used" in shown and not set("\x1b\u202e\x07") & set(shown)
    picture.save(tmp_path / "y.png")
    assert show(capsys, tmp_path / "y.png")[0] == 2


def test_components_of_a_pipeline(tiny_checkpoint, capsys):
    for name, kind in (("tokenizer", "CLIPTokenizer"), ("scheduler", "FlowMatchEulerDiscreteScheduler")):
        code, shown = show(capsys, tiny_checkpoint / name)
        assert code == 0 and f"ppsd3.{kind}.from_pretrained(" in shown


def test_foreign_and_unreadable_files(tmp_path, capsys):
    def shows(content, *parts, name="x.safetensors", expected=0):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else originals.write(path, content)
        code, shown = show(capsys, path)
        assert code == expected and all(part in shown for part in (str(path), *parts)), shown

    rows = np.zeros((3, 7), "float32")
    shows({"model.diffusion_model.input_blocks.0.0.weight": rows}, "Stable Diffusion 1")
    shows({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": rows}, "FLUX.1", "FluxPipeline")
    shows({"a.b": rows, "c.d": rows}, "no part of Stable Diffusion 3", expected=2)
    kohya = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": rows}
    clip = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": rows}
    shows({**kohya, **clip}, "a LoRA for Stable Diffusion 1")
    shows({"thing.lora_A.weight": rows}, "an adapter for something else", expected=2)
    shows(b"GGUF" + bytes(20), "GGUF", name="x.gguf")
    shows(b"PK\x03\x04" + bytes(20), "pickle", name="x.ckpt")
    shows(bytes(3), "no complete safetensors", expected=2)
    assert "empty directory" in show(capsys, tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")[1]
    code, shown = show(capsys, tmp_path / "x.gguf", "--variant", "fp16")
    assert code == 2 and "--variant" in shown
    assert show(capsys, tmp_path / "none.safetensors")[0] == 2


@pytest.mark.parametrize(
    "configs", ['{"transformer": []}', '{"vae": 3}', '{"transformer": {"num_layers": [[[]]]}}', "[]", "{"]
)
def test_configurations_of_another_form(tmp_path, capsys, configs):
    tensors = {"joint_blocks.0.context_block.attn.qkv.weight": np.zeros((9, 3), "float32")}
    path = tmp_path / "x.safetensors"
    originals.write(path, tensors, metadata={"ppsd3_configs": configs})
    code, shown = show(capsys, path)
    assert str(path) in shown and "--debug" not in shown and code == (0 if "num_layers" in configs else 2)
