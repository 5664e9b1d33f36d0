"""What is said of paths, directories, classes and tensors that ppsd3 cannot use."""

import json
import os
import random
import time
import tracemalloc

import pytest
from helpers import strangers

from ppsd3.utils import signatures
from ppsd3.utils.recognition import explain, explain_class, explain_quantization, explain_tensors

SNAPSHOT = "models--org--name/snapshots/0123abc"


def put(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def pipeline(directory, class_name="StableDiffusion3Pipeline"):
    put(directory / "model_index.json", {"_class_name": class_name})
    put(directory / "transformer" / "config.json", {"_class_name": "SD3Transformer2DModel"})
    put(directory / "scheduler" / "scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    return directory


def says(path, *parts, wanted=""):
    said = explain(path, wanted)
    assert said is not None and all(str(part) in said for part in (path, *parts)), said


class TestPaths:
    def test_a_link_into_nothing(self, tmp_path):
        (tmp_path / "x.safetensors").symlink_to("nowhere.safetensors")
        says(tmp_path / "x.safetensors", "is a link to nowhere.safetensors, which does not exist", "Make the link anew")

    def test_a_file_that_the_hubs_cache_has_lost(self, tmp_path):
        link = tmp_path / SNAPSHOT / "vae" / "diffusion_pytorch_model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to("../../../blobs/4d7a")
        says(link, "blobs/4d7a, which does not exist", "force_download=True")
        says(link.parent, "diffusion_pytorch_model.safetensors", "force_download=True", wanted="network")

    def test_a_directory_behind_a_link_into_nothing(self, tmp_path):
        (tmp_path / "models").symlink_to(tmp_path / "gone")
        says(tmp_path / "models" / "sd3" / "x.safetensors", f"goes through {tmp_path / 'models'}")

    def test_a_name_that_is_spelt_otherwise(self, tmp_path):
        pipeline(tmp_path)
        says(tmp_path / "transfomer", "Did you mean 'transformer'?")
        says(tmp_path / "transfomer" / "config.json", "has no 'transfomer'", "Did you mean 'transformer'?")

    def test_a_download_beside_it(self, tmp_path):
        put(tmp_path / "x.safetensors.part")
        says(tmp_path / "x.safetensors", "x.safetensors.part, a download that has not ended", "Let it end")
        put(tmp_path / "y.safetensors", b"12345678{")
        put(tmp_path / "y.safetensors.aria2")
        says(tmp_path / "y.safetensors", "is a download that has not ended")

    def test_a_folder_in_a_file(self, tmp_path):
        put(tmp_path / "x.safetensors", b"12345678{")
        says(tmp_path / "x.safetensors" / "vae", f"{tmp_path / 'x.safetensors'} is a file")

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        says(tmp_path / "pipe", "is no file", "Pass a file")

    @pytest.mark.parametrize("path", ["", "\0", "/", ".", 3, None, b"\xff\xfe", "x" * 10**5, "a/" * 5000])
    def test_nothing_is_raised(self, path):
        assert explain(path) is None or isinstance(explain(path), str)


class TestDirectories:
    def test_a_whole_pipeline(self, tmp_path):
        pipeline(tmp_path)
        says(tmp_path, "a whole pipeline (StableDiffusion3Pipeline)", "subfolder=", "transformer, scheduler")
        assert explain(tmp_path, "pipeline") is None and explain(tmp_path, "any") is None

    def test_one_level_too_low(self, tmp_path):
        pipeline(tmp_path)
        says(tmp_path / "transformer", "folder of one network (SD3Transformer2DModel)", f"directory, {tmp_path}")
        says(tmp_path / "scheduler", "folder of one scheduler", f"directory, {tmp_path}")
        assert explain(tmp_path / "transformer", "network") is None

    def test_one_level_too_high(self, tmp_path):
        pipeline(tmp_path / "sd3")
        says(tmp_path, "the parent of a pipeline's directory", f"Pass {tmp_path / 'sd3'}.")

    def test_folders_of_the_hubs_cache(self, tmp_path):
        pipeline(tmp_path / SNAPSHOT)
        for folder in ("models--org--name", "models--org--name/snapshots"):
            says(tmp_path / folder, "of the hub's cache", f"Pass {tmp_path / SNAPSHOT}, or the hub id 'org/name'.")
        (tmp_path / "models--org--other" / "snapshots").mkdir(parents=True)
        says(tmp_path / "models--org--other", "without a copy in it", "Download org/other again")

    def test_a_pipeline_without_its_index(self, tmp_path):
        pipeline(tmp_path)
        (tmp_path / "model_index.json").unlink()
        says(tmp_path, "has transformer, scheduler, but no model_index.json", "Download")
        says(tmp_path / "model_index.json", "no model_index.json")

    def test_single_files(self, tmp_path):
        put(tmp_path / "sd3_medium.safetensors")
        says(tmp_path, "single files (sd3_medium.safetensors)", "from_single_file('")

    @pytest.mark.parametrize("kind", ["GGUF of SD3", "a torch archive", "ONNX"])
    def test_other_formats(self, tmp_path, kind):
        name, content, what, _ = strangers.OTHERS[kind]
        put(tmp_path / name, content)
        says(tmp_path, name if kind != "ONNX" else "ONNX", what.partition(".*")[0].replace("is ", ""))
        put(tmp_path / "config.json", {"_class_name": "SD3Transformer2DModel"})
        says(tmp_path, what.partition(".*")[0].replace("is ", ""), wanted="network")

    def test_another_programs(self, tmp_path):
        put(tmp_path / "openvino_model.xml")
        says(tmp_path, "a model for OpenVINO", "safetensors")
        put(tmp_path / "sd3.mlpackage" / "Manifest.json", {})
        says(tmp_path / "sd3.mlpackage", "a CoreML package", "safetensors")

    def test_empty(self, tmp_path):
        says(tmp_path, "is an empty directory")

    def test_a_download_under_way(self, tmp_path):
        put(tmp_path / "config.json", {})
        put(tmp_path / "model.safetensors.incomplete")
        says(tmp_path, "model.safetensors.incomplete", "Let it end", wanted="network")

    def test_other_models(self, tmp_path):
        pipeline(tmp_path, "FluxKontextPipeline")
        says(tmp_path, "is for FLUX.1 (FluxKontextPipeline)", "diffusers' FluxKontextPipeline", wanted="pipeline")

    def test_a_quantized_network(self, tmp_path):
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        put(tmp_path / "config.json", {"_class_name": "SD3Transformer2DModel", "quantization_config": config})
        says(tmp_path, "is quantized by bitsandbytes, in nf4", "pipe.quantize('int8')", wanted="network")


CLASSES = {
    "FluxPipeline": "FLUX.1", "FluxTransformer2DModel": "FLUX.1", "FluxControlNetModel": "FLUX.1",
    "Flux2Pipeline": "FLUX.2", "Flux2KleinPipeline": "FLUX.2", "AutoencoderKLFlux2": "FLUX.2",
    "StableDiffusionXLPipeline": "Stable Diffusion XL", "StableDiffusionPipeline": "Stable Diffusion 1",
    "UNet2DConditionModel": "Stable Diffusion 1", "ControlNetModel": "Stable Diffusion 1",
    "StableCascadePriorPipeline": "Stable Cascade", "PixArtSigmaPipeline": "PixArt",
    "HunyuanDiTPipeline": "Hunyuan-DiT", "AuraFlowPipeline": "AuraFlow", "Lumina2Pipeline": "Lumina",
    "SanaPipeline": "Sana", "AutoencoderDC": "Sana", "QwenImageEditPipeline": "Qwen-Image",
    "ZImagePipeline": "Z-Image", "WanPipeline": "Wan", "CogVideoXPipeline": "CogVideoX", "LTXPipeline": "LTX-Video",
    "HunyuanVideoPipeline": "HunyuanVideo", "KolorsPipeline": "Kolors", "AnimateDiffPipeline": "AnimateDiff",
    "T2IAdapter": "Stable Diffusion 1", "StableVideoDiffusionPipeline": "Stable Video Diffusion",
    "ChromaPipeline": "Chroma",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_other_models(name):
    said = explain_class("X", name)
    assert said.startswith(f"X is for {CLASSES[name]} ({name})") and signatures.PUBLISHED in said
    assert not name.endswith("Pipeline") or f"diffusers' {name}." in said


@pytest.mark.parametrize(
    "name",
    ["StableDiffusion3Pipeline", "SD3Transformer2DModel", "AutoencoderKL", "T5EncoderModel", "MyOwn", "", None, 3],
)
def test_own_and_unknown_classes(name):
    assert explain_class("X", name) is None


@pytest.mark.parametrize(
    "config, says",
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, in int8"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ("awq", "AWQ"),
        ({"quant_method": "int8"}, None),  # ppsd3's
        ({"quant_method": ["x"]}, None),
        (None, None),
    ],
)
def test_quantization(config, says):
    said = explain_quantization("X", config)
    assert said is None if says is None else f"X is quantized by {says}. " in said


ROLES = {
    "adapter": {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": ("F16", (4, 1536))},
    "word": {"clip_l": ("F16", (2, 768)), "clip_g": ("F16", (2, 1280))},
    "ip_adapter": {"image_proj.time_embedding.linear_1.weight": ("", ()), "ip_adapter.0.to_k_ip.weight": ("", ())},
    "network": {"joint_blocks.0.context_block.attn.qkv.weight": ("F16", (9, 3))},
}


@pytest.mark.parametrize("role", ROLES)
def test_parts_of_stable_diffusion_3_at_another_door(role):
    for wanted in ("", *ROLES):
        said = explain_tensors("X", ROLES[role], wanted)
        assert said is None if wanted == role else " Load it with " in said


@pytest.mark.parametrize(
    "width, says",
    [
        (4, "VAE of Stable Diffusion 1, 2 or XL, with 4 channels"),
        (32, "FLUX.2, with 32 channels"),
        (16, "is a VAE. Load"),
    ],
)
def test_vaes(width, says):
    names = {"decoder.conv_in.weight": ("F16", (512, width, 3, 3)), "decoder.conv_out.weight": ("F16", (3, 128, 3, 3))}
    assert says in explain_tensors("X", names)


def test_encoders_of_another_size():
    t5 = {"shared.weight": ("F16", (32128, 768)), "encoder.block.0.layer.0.SelfAttention.q.weight": ("F16", (768, 768))}
    assert "T5-base, of width 768" in explain_tensors("X", t5)
    clip = {
        "text_model.embeddings.token_embedding.weight": ("F16", (49408, 1024)),
        "text_model.encoder.layers.0.mlp.fc1.weight": ("F16", (4096, 1024)),
    }
    assert "OpenCLIP-H, of Stable Diffusion 2" in explain_tensors("X", clip)


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_raise_nothing(tmp_path, seed):
    rng = random.Random(seed)
    path = tmp_path / "x.safetensors"
    starts = [content[:60] for _, content, _, _ in strangers.OTHERS.values()]
    for _ in range(100):
        path.write_bytes(rng.choice([b"", *starts]) + rng.randbytes(rng.randrange(300)))
        assert explain(path) is None or str(path) in explain(path)


HOSTILE = {
    "many tensors": lambda: strangers.safetensors({f"{'joint_blocks.' * 2}{i}": (0,) for i in range(6000)}),
    "long names": lambda: strangers.safetensors({"to_k." * 10**5 + str(i): (0,) for i in range(3)}),
    "deep": lambda: (10**6).to_bytes(8, "little") + b"{" + b"[" * 10**6,
    "a long number": lambda: (10**6).to_bytes(8, "little") + b'{"a":' + b"9" * 10**6,
    "GGUF that says it is long": lambda: b"GGUF" + b"\xff" * 10**6,
    "GGUF of empty values": lambda: b"GGUF" + bytes(10**6),
    "JSON without end": lambda: b'{"error": "' + b"x" * 10**6,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_costs_little(tmp_path, kind):
    path = put(tmp_path / "x.safetensors", HOSTILE[kind]())
    began = time.process_time()
    explain(path)
    assert time.process_time() - began < 2
    tracemalloc.start()
    explain(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 28
    tracemalloc.stop()
