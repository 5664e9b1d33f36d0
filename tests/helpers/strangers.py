"""Files that people bring and ppsd3 does not load: name -> (file's name, bytes, what is said of it, the remedy)."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np


def safetensors(shapes, dtype="F16", cut=0):
    """The bytes of a file of zeros with these shapes, ``cut`` bytes short; a shape may be (dtype, shape)."""
    sizes = {"F16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1, "F32": 4, "I32": 4, "BF16": 2}
    header, start = {}, 0
    for name, shape in shapes.items():
        code, shape = shape if isinstance(shape[0], str) else (dtype, shape)
        stop = start + sizes[code] * int(np.prod(shape))
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(start - cut)


def gguf(architecture, kind):
    """The beginning of a GGUF file: magic, version, counts, values."""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    values = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    values += text("general.quantization_version") + struct.pack("<II", 4, 2)
    values += text("general.file_type") + struct.pack("<II", 4, kind)
    return b"GGUF" + struct.pack("<IQQ", 3, 1000, 3) + values + bytes(100)


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}q\x00.")
    return out.getvalue()


def npz():
    out = io.BytesIO()
    np.savez(out, a=np.zeros(3))
    return out.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16000000000\n"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + bytes(20)
_ORIGINAL, _DOWNLOAD, _UNPACK = r"quantize\('int8'\)", "Download", "Unpack it"

# Not tensors: formats of other programs, and what was saved in a file's place.
OTHERS = {
    "GGUF of FLUX.1": ("flux1-dev-Q4_K_S.gguf", gguf("flux", 14), "GGUF.*architecture flux.*Q4_K_S", "FluxPipeline"),
    "GGUF of SD3": ("sd3.5-Q8_0.gguf", gguf("sd3", 7), "GGUF.*architecture sd3.*Q8_0.*not read yet", "quantize"),
    "GGUF by another name": ("model.safetensors", gguf("sd3", 7), "is a GGUF file", "quantize"),
    "GGML": ("model.bin", b"tjgg" + bytes(40), "GGML", _ORIGINAL),
    "ONNX": ("model.onnx", b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(40), "ONNX", "safetensors"),
    "OpenVINO": (
        "openvino_model.xml",
        b'<?xml version="1.0"?>\n<net name="Model0" version="11">',
        "OpenVINO",
        "safetensors",
    ),
    "TensorRT": ("model.engine", b"ftrt" + bytes(40), "TensorRT", "safetensors"),
    "CoreML": ("model.mlmodel", b"\x08\x07\x12\x9e" + bytes(40), "CoreML", "safetensors"),
    "HDF5": ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "safetensors"),
    "Flax": ("flax_model.msgpack", b"\x82\xa6params\x81\xa6kernel" + bytes(40), "Flax", "safetensors"),
    "npy": ("x.npy", b"\x93NUMPY\x01\x00" + bytes(40), "numpy array", "Pass"),
    "npz": ("x.npz", npz(), "numpy archive", "save_file"),
    "a pickle": ("lora.pt", pickle.dumps({"a": 1}), "is a pickle", "torch.load|safetensors"),
    "a torch archive": ("diffusion_pytorch_model.bin", zipped("archive/data.pkl"), "is a pickle", "torch.load"),
    "an old torch file": ("sd.ckpt", _TORCH_LEGACY, "is a pickle", "torch.load|safetensors"),
    "a torch archive by another name": ("x.safetensors", zipped("x/data.pkl"), "is a pickle", "torch.load"),
    "pdparams": ("model_state.pdparams", pickle.dumps({"a": 1}), "is a pickle", "ppsd3 convert|torch.load"),
    "zip": ("model.zip", zipped("model_index.json"), "zip archive", _UNPACK),
    "tar": ("model.tar", bytes(257) + b"ustar" + bytes(300), "tar archive", _UNPACK),
    "7z": ("model.7z", b"7z\xbc\xaf\x27\x1c" + bytes(40), "7z archive", _UNPACK),
    "gzip": ("model.tar.gz", b"\x1f\x8b\x08" + bytes(40), "gzip archive", _UNPACK),
    "PDF": ("paper.pdf", b"%PDF-1.7\n" + bytes(40), "PDF", "Pass a checkpoint"),
    "JPEG": ("cat.safetensors", b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(40), "picture", "Pass a checkpoint"),
    "a web page": ("sd3.safetensors", b"\n<!DOCTYPE html>\n<html><head>", "web page", _DOWNLOAD),
    "an error in JSON": ("sd3.safetensors", b'{"error": "Repository not found"}', "Repository not found", _DOWNLOAD),
    "an error in XML": (
        "sd3.safetensors",
        b"<?xml?><Error><Code>AccessDenied</Code>",
        "message of a server",
        _DOWNLOAD,
    ),
    "an error in words": ("sd3.safetensors", b"Entry not found", "Entry not found", _DOWNLOAD),
    "an LFS pointer": ("sd3.safetensors", LFS, "Git LFS pointer", "git lfs pull"),
    "an LFS pointer of a pickle": ("model.bin", LFS, "Git LFS pointer|pickle", "git lfs pull|torch.load|safetensors"),
    "empty": ("sd3.safetensors", b"", "is empty", _DOWNLOAD),
    "zeros": ("sd3.safetensors", bytes(5000), "5,000 bytes, all of them zero", _DOWNLOAD),
    "cut off": (
        "x.safetensors",
        safetensors({"joint_blocks.0": (50,)}, cut=10),
        r"10 of [\d,]+ bytes are missing",
        _DOWNLOAD,
    ),
    "cut off in the header": ("x.safetensors", safetensors({"a": (5,)})[:20], "are missing", _DOWNLOAD),
    "under way": ("sd3.safetensors.incomplete", b"12345678{", "download that has not ended", "Let it end"),
    "under way in a browser": ("sd3.safetensors.crdownload", b"12345678{", "not ended", "Let it end"),
}

_MODEL = {
    "FLUX.1": {"double_blocks.0.img_attn.qkv.weight": (9, 3), "guidance_in.in_layer.weight": (3, 3)},
    "FLUX.1 of diffusers": {"single_transformer_blocks.0.attn.to_q.weight": (3, 3), "x_embedder.weight": (3, 64)},
    "FLUX.1 with prefix": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9, 3)},
    "FLUX.2": {"double_blocks.0.img_attn.qkv.weight": (9, 3), "double_stream_modulation_img.lin.weight": (3, 3)},
    "Chroma": {"distilled_guidance_layer.in_proj.bias": (3,), "double_blocks.0.img_attn.qkv.weight": (9, 3)},
    "Stable Diffusion XL": {
        "model.diffusion_model.input_blocks.0.0.weight": (3, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (77, 8),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    },
    "Stable Diffusion XL of diffusers": {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    },
    "Stable Diffusion 2": {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, 1024)},
    "Stable Diffusion 1": {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, 768),
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 8),
    },
    "Stable Cascade": {"clip_txt_mapper.weight": (3, 3), "down_blocks.0.0.channelwise.0.weight": (3, 3)},
    "PixArt": {"adaln_single.linear.weight": (3, 3), "transformer_blocks.0.attn1.to_q.weight": (3, 3)},
    "Hunyuan-DiT": {"blocks.0.attn1.Wqkv.weight": (3, 3), "text_embedding_padding": (3, 3)},
    "AuraFlow": {"model.double_layers.0.attn.w2q.weight": (3, 3), "model.cond_seq_linear.weight": (3, 3)},
    "Lumina": {"cap_embedder.0.weight": (3,), "layers.0.attention.qkv.weight": (3, 3)},
    "Z-Image": {"cap_pad_token": (1, 3), "layers.0.attention.qkv.weight": (3, 3), "cap_embedder.0.weight": (3,)},
    "Sana": {"blocks.0.cross_attn.q_linear.weight": (3, 3), "blocks.0.mlp.inverted_conv.conv.weight": (3, 3)},
    "Qwen-Image": {"transformer_blocks.0.img_mlp.net.0.proj.weight": (3, 3), "txt_norm.weight": (3,)},
    "Wan": {"blocks.0.self_attn.q.weight": (3, 3), "blocks.0.cross_attn.k.weight": (3, 3), "head.modulation": (1, 2)},
    "CogVideoX": {"patch_embed.text_proj.weight": (3, 3), "transformer_blocks.0.attn1.to_q.weight": (3, 3)},
    "HunyuanVideo": {"txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": (3,)},
    "LTX-Video": {"patchify_proj.weight": (3, 3), "transformer_blocks.27.scale_shift_table": (6, 3)},
    "HiDream-I1": {"double_stream_blocks.0.block.adaLN_modulation.1.bias": (3,)},
    "Mochi": {"blocks.0.attn.qkv_x.weight": (3, 3), "pos_frequencies": (3, 3)},
    "AnimateDiff": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (3,)},
}
_UNET = "down_blocks.1.attentions.0.transformer_blocks.0"
_LORA = {
    "FLUX.1, by kohya": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)},
    "FLUX.1, by PEFT": {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)},
    "FLUX.1, of attentions": {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": (3072, 4),
    },
    "FLUX.1, original": {"double_blocks.0.img_attn.proj.lora_A.weight": (4, 3072)},
    "Stable Diffusion XL, by kohya": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280),
    },
    "Stable Diffusion XL, by PEFT": {f"unet.{_UNET}.attn2.to_k.lora_A.weight": (4, 2048)},
    "Stable Diffusion 1, by kohya": {f"lora_unet_{_UNET.replace('.', '_')}_attn2_to_k.lora_down.weight": (4, 768)},
    "Stable Diffusion 1, before PEFT": {f"unet.{_UNET}.attn2.processor.to_k_lora.down.weight": (4, 768)},
    "Stable Diffusion 1, LoHa": {f"lora_unet_{_UNET.replace('.', '_')}_attn2_to_k.hada_w1_b": (4, 768)},
    "Qwen-Image": {"transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight": (4, 3)},
    "Wan": {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 5120),
        "diffusion_model.blocks.0.cross_attn.k.lora_A.weight": (4, 5120),
    },
}
_CONTROLNET = {
    "Stable Diffusion 1": {
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        f"{_UNET}.attn2.to_k.weight": (4, 768),
    },
    "Stable Diffusion 1, original": {
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, 768),
    },
    "Stable Diffusion XL": {
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "add_embedding.linear_1.weight": (4, 4),
        f"{_UNET}.attn2.to_k.weight": (4, 2048),
    },
    "FLUX.1": {"controlnet_blocks.0.weight": (3, 3), "single_transformer_blocks.0.attn.to_q.weight": (3, 3)},
    "FLUX.1, by XLabs": {"controlnet_blocks.0.weight": (3, 3), "double_blocks.0.img_attn.qkv.weight": (9, 3)},
}
_IP_ADAPTER = {
    "Stable Diffusion 1": {"image_proj.proj.weight": (9, 3), "ip_adapter.1.to_k_ip.weight": (32, 768)},
    "Stable Diffusion XL": {"image_proj.latents": (1, 4, 3), "ip_adapter.1.to_k_ip.weight": (64, 2048)},
    "FLUX.1": {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (3, 3)},
}
_JOINT = "joint_blocks.0.x_block.attn.qkv"
_QUANTIZED = {
    "bitsandbytes, in nf4": {
        f"{_JOINT}.weight": ("U8", (12, 1)),
        f"{_JOINT}.weight.absmax": (3,),
        f"{_JOINT}.weight.quant_state.bitsandbytes__nf4": ("U8", (9,)),
    },
    "bitsandbytes, in fp4": {f"{_JOINT}.weight.quant_state.bitsandbytes__fp4": ("U8", (9,))},
    "bitsandbytes, in int8": {f"{_JOINT}.weight": ("I8", (3, 3)), f"{_JOINT}.SCB": ("F32", (3,))},
    "GPTQ": {f"{_JOINT}.qweight": ("I32", (3, 3)), f"{_JOINT}.qzeros": ("I32", (3,)), f"{_JOINT}.g_idx": ("I32", (3,))},
    "AWQ": {f"{_JOINT}.qweight": ("I32", (3, 3)), f"{_JOINT}.qzeros": ("I32", (3,)), f"{_JOINT}.scales": (3,)},
    "SVDQuant": {f"{_JOINT}.qweight": ("I8", (3, 3)), f"{_JOINT}.wscales": (3,), f"{_JOINT}.lora_down": (3, 3)},
    "quanto": {f"{_JOINT}.weight._data": ("I8", (3, 3)), f"{_JOINT}.weight._scale": (3,)},
    "torchao": {f"{_JOINT}._weight_qdata": ("I8", (3, 3)), f"{_JOINT}._weight_scale": (3,)},
    "nvfp4": {f"{_JOINT}.weight": ("U8", (3, 3)), f"{_JOINT}.weight_scale": (3,), f"{_JOINT}.weight_scale_2": (1,)},
}
_NETWORK = {
    "upscaler": ({"conv_first.weight": (3, 3, 3, 3), "conv_last.weight": (3, 3, 3, 3)}, "ESRGAN", "height="),
    "a language model": ({"model.layers.0.self_attn.q_proj.weight": (3, 3)}, "language model", "T5-XXL"),
    "UMT5": (
        {
            "shared.weight": (9, 4096),
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64),
        },
        "UMT5",
        "T5-XXL",
    ),
    "T2I-adapter": ({"adapter.body.0.resnets.0.block1.weight": (3, 3, 3, 3)}, "T2I-adapter", "ControlNet"),
    "LLLite": ({"lllite_unet_input_blocks_4_1.down.0.weight": (3, 3)}, "ControlNet-LLLite", "ControlNet"),
}


def _tensors():
    for name, shapes in _MODEL.items():
        yield (
            f"network of {name}",
            shapes,
            f"a network of {name.partition(' of ')[0].partition(' with ')[0]}",
            "diffusers'",
        )
    for part, table in (("LoRA", _LORA), ("ControlNet", _CONTROLNET), ("IP-adapter", _IP_ADAPTER)):
        for name, shapes in table.items():
            yield f"{part} of {name}", shapes, f"{part} for {name.partition(',')[0]}", "for Stable Diffusion 3 or 3.5"
    for name, shapes in _QUANTIZED.items():
        yield f"quantized by {name}", shapes, f"is quantized by .*{name.partition(',')[0]}", r"quantize\('int8'\)"
    for name, (shapes, what, remedy) in _NETWORK.items():
        yield name, shapes, what, remedy


TENSORS = {
    name: (f"{index}.safetensors", safetensors(shapes), what, remedy)
    for index, (name, shapes, what, remedy) in enumerate(_tensors())
}
FILES = {**OTHERS, **TENSORS}
