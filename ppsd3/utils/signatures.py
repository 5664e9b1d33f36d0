"""How to tell files that ppsd3 does not load: first bytes, names of tensors, names of classes; and what to use instead.

Tables only, read by :mod:`ppsd3.utils.recognition`. A new kind is a line. Sources: the formats' specifications, and the
state dicts of diffusers 0.42, of the models' own repositories and of kohya's sd-scripts.
"""

from __future__ import annotations

from typing import NamedTuple

PUBLISHED = "stabilityai/stable-diffusion-3.5-medium"
SAFETENSORS = "ppsd3 reads safetensors: use the repository's safetensors files."
ORIGINAL = "Use the original, in safetensors; `pipe.quantize('int8')` or storage_dtype='float16' make it smaller here."
UNPACK = "Unpack it, and pass what is in it: a directory in diffusers format or a safetensors file."
_NOT_A_MODEL = "Pass a checkpoint: a directory in diffusers format or a safetensors file."

# ---------------------------------------------------------------------------------------------------------- first bytes


class Magic(NamedTuple):
    """Bytes at an offset, what a file with them is, and the remedy."""

    start: int
    bytes: bytes
    what: str
    remedy: str


MAGICS = (
    *(Magic(0, magic, "a GGML file, of llama.cpp before GGUF", ORIGINAL) for magic in (b"lmgg", b"fmgg", b"tjgg")),
    Magic(
        0, b"ftrt", "a TensorRT engine, made for one kind of GPU", "Use the safetensors files that it was made from."
    ),
    Magic(0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", SAFETENSORS),
    Magic(4, b"TFL3", "a TensorFlow Lite model", SAFETENSORS),
    Magic(0, b"\x93NUMPY", "a numpy array (.npy)", "Pass arrays themselves to arguments that take them."),
    Magic(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    Magic(0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    Magic(0, b"\x1f\x8b", "a gzip archive", UNPACK),
    Magic(0, b"BZh", "a bzip2 archive", UNPACK),
    Magic(0, b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    Magic(0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    Magic(257, b"ustar", "a tar archive", UNPACK),
    *(Magic(0, mark, "text in UTF-16", "Save it in UTF-8.") for mark in (b"\xff\xfe", b"\xfe\xff")),
    Magic(0, b"%PDF-", "a PDF document", _NOT_A_MODEL),
    Magic(0, b"\x89PNG\r\n\x1a\n", "a picture (PNG)", f"{_NOT_A_MODEL} Pictures go to `image` of a call."),
    Magic(0, b"\xff\xd8\xff", "a picture (JPEG)", f"{_NOT_A_MODEL} Pictures go to `image` of a call."),
    Magic(0, b"GIF8", "a picture (GIF)", f"{_NOT_A_MODEL} Pictures go to `image` of a call."),
    Magic(8, b"WEBP", "a picture (WebP)", f"{_NOT_A_MODEL} Pictures go to `image` of a call."),
    Magic(4, b"ftyp", "a video or a picture (MP4, HEIF, AVIF)", _NOT_A_MODEL),
    Magic(0, b"\x7fELF", "a program", _NOT_A_MODEL),
    Magic(0, b"MZ", "a program", _NOT_A_MODEL),
)

# End of a name -> what the file is and the remedy, for formats without first bytes of their own.
SUFFIXES = {
    ".gguf": ("a GGUF file, for llama.cpp and ComfyUI, which ppsd3 does not read yet", ORIGINAL),
    **dict.fromkeys((".zip", ".tar", ".7z", ".rar", ".gz", ".tgz"), ("an archive", UNPACK)),
    ".npz": ("a numpy archive (.npz)", "Save its arrays with safetensors.numpy.save_file, and load that."),
    ".onnx": ("an ONNX model", SAFETENSORS),
    ".onnx_data": ("the weights of an ONNX model", SAFETENSORS),
    ".msgpack": ("a Flax checkpoint (msgpack)", SAFETENSORS),
    ".h5": ("a Keras checkpoint", SAFETENSORS),
    ".mlmodel": ("a CoreML model", SAFETENSORS),
    ".mlpackage": ("a CoreML package", SAFETENSORS),
    ".mlmodelc": ("a compiled CoreML model", SAFETENSORS),
    ".engine": ("a TensorRT engine, made for one kind of GPU", "Use the safetensors files that it was made from."),
    ".plan": ("a TensorRT engine, made for one kind of GPU", "Use the safetensors files that it was made from."),
    ".pdmodel": ("a static graph of Paddle Inference", "Load the checkpoint that it was exported from."),
    ".pdiparams": (
        "the weights of a static graph of Paddle Inference",
        "Load the checkpoint that it was exported from.",
    ),
}
# A file in a directory that makes it a model for another program.
DIRECTORY_FILES = {
    "openvino_model.xml": ("a model for OpenVINO", SAFETENSORS),
    "model.onnx": ("an ONNX model", SAFETENSORS),
    "flax_model.msgpack": ("a Flax checkpoint", SAFETENSORS),
    "tf_model.h5": ("a Keras checkpoint", SAFETENSORS),
    "model.mil": ("a compiled CoreML model", SAFETENSORS),
}
# Ends of the names of downloads under way: of the hubs, aria2, browsers.
UNFINISHED = (".incomplete", ".aria2", ".crdownload", ".part", ".partial", ".download", ".opdownload", ".!qb")

# ``general.file_type`` of GGUF -> its name in llama.cpp.
GGUF_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"}
GGUF_TYPES.update({12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"})
GGUF_TYPES.update({19: "IQ2_XXS", 20: "IQ2_XS", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16"})

# ``general.architecture`` of GGUF -> the model; that of Stable Diffusion 3 is "sd3".
GGUF_MODELS = {"flux": "FLUX.1", "flux2": "FLUX.2", "sdxl": "Stable Diffusion XL", "sd1": "Stable Diffusion 1"}
GGUF_MODELS.update({"aura": "AuraFlow", "qwen_image": "Qwen-Image", "hyvid": "HunyuanVideo", "ltxv": "LTX-Video"})
GGUF_MODELS.update({"wan": "Wan", "cosmos": "Cosmos", "hidream": "HiDream-I1", "lumina2": "Lumina"})

# ----------------------------------------------------------------------------------------------------- names of tensors

# In all tables of names, an entry has alternatives, and each alternative parts of names that all occur. Names are in
# lower case, one on a line, with underscores for dots, as kohya's scripts write them: one table serves all dialects.
Marks = tuple[tuple[str, ...], ...]


class Model(NamedTuple):
    """Another model.

    Attributes:
        pipeline: of diffusers, that draws it.
        marks: names of its tensors.
        classes: beginnings of the names of its classes.
        widths: of the texts that its cross-attention reads, which tell models of the same names apart.
    """

    name: str
    pipeline: str
    marks: Marks
    classes: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()


UNET = (
    *(("input_blocks_",), ("output_blocks_",), ("middle_block_1_",), ("mid_block_attentions_0_transformer_",)),
    *(("attentions_0_transformer_blocks_",), ("attentions_1_transformer_blocks_",)),
)
_XL = (
    "conditioner_embedders_",
    "lora_te2_",
    "text_encoder_2_",
    "label_emb_",
    "add_embedding_",
    "transformer_blocks_9_",
)

# The first that matches counts, so that special ones come before those whose names they share.
MODELS = (
    Model("FLUX.3", "Flux3ModularPipeline", (("early_stream_modulations",), ("ref_time_in_",)), ("Flux3",)),
    Model(
        "FLUX.2",
        "Flux2Pipeline",
        (("double_stream_modulation",), ("single_stream_modulation",), ("to_qkv_mlp_proj",)),
        ("Flux2", "AutoencoderKLFlux2"),
    ),
    Model("Chroma", "ChromaPipeline", (("distilled_guidance_layer",),), ("Chroma",)),
    Model(
        "HunyuanImage",
        "HunyuanImagePipeline",
        (("time_guidance_embed", "token_refiner"),),
        ("HunyuanImage", "AutoencoderKLHunyuanImage"),
    ),
    Model(
        "HunyuanVideo",
        "HunyuanVideoPipeline",
        (("individual_token_refiner",), ("token_refiner_refiner_blocks",)),
        ("HunyuanVideo", "HunyuanSkyreels", "AutoencoderKLHunyuanVideo"),
    ),
    Model("HiDream-I1", "HiDreamImagePipeline", (("double_stream_blocks_",),), ("HiDream",)),
    Model(
        "Qwen-Image",
        "QwenImagePipeline",
        (("transformer_blocks_", "img_mlp_net_"), ("transformer_blocks_", "img_mod_1"), ("txt_in_text_norm",)),
        ("QwenImage", "AutoencoderKLQwenImage"),
    ),
    Model(
        "Z-Image",
        "ZImagePipeline",
        (("cap_pad_token",), ("x_pad_token",), ("all_x_embedder",), ("layers_0_attention_to_",)),
        ("ZImage",),
    ),
    Model(
        "Lumina",
        "Lumina2Pipeline",
        (("noise_refiner_",), ("context_refiner_",), ("cap_embedder_",), ("\nlayers_0_attention_qkv",)),
        ("Lumina",),
    ),
    Model(
        "AuraFlow",
        "AuraFlowPipeline",
        (("joint_transformer_blocks_",), ("double_layers_", "w2q"), ("single_layers_", "w1q"), ("cond_seq_linear",)),
        ("AuraFlow",),
    ),
    Model(
        "Stable Cascade",
        "StableCascadeCombinedPipeline",
        (("clip_txt_mapper",), ("clip_txt_pooled_mapper",), ("channelwise_0", "depthwise")),
        ("StableCascade", "Wuerstchen", "PaellaVQ"),
    ),
    Model(
        "Sana",
        "SanaPipeline",
        (("conv_inverted",), ("inverted_conv",), ("caption_norm",), ("decoder_up_blocks_0_0_conv",)),
        ("Sana", "AutoencoderDC"),
    ),
    Model(
        "LTX-Video",
        "LTXPipeline",
        (("patchify_proj",), ("scale_shift_table", "\nproj_in_")),
        ("LTX", "AutoencoderKLLTX"),
    ),
    Model(
        "PixArt",
        "PixArtSigmaPipeline",
        (("adaln_single_",), ("y_embedder_y_proj",), ("cross_attn_kv_linear",)),
        ("PixArt",),
    ),
    Model(
        "Hunyuan-DiT",
        "HunyuanDiTPipeline",
        (("text_embedding_padding",), ("mlp_t5_",), ("skip_linear",), ("time_extra_emb",)),
        ("HunyuanDiT",),
    ),
    Model("CogView", "CogView4Pipeline", (("time_condition_embed",),), ("CogView",)),
    Model(
        "CogVideoX",
        "CogVideoXPipeline",
        (("patch_embed_text_proj",), ("\ntransformer_transformer_blocks_0_attn1_to_",)),
        ("CogVideoX", "ConsisID", "AutoencoderKLCogVideoX"),
    ),
    Model("Mochi", "MochiPipeline", (("pos_frequencies",), ("attn_qkv_x",)), ("Mochi", "AutoencoderKLMochi")),
    Model(
        "Cosmos",
        "Cosmos2TextToImagePipeline",
        (("net_x_embedder_proj_1",), ("learnable_pos_embed_",), ("blocks_0_self_attn_q_proj", "cross_attn_q_proj")),
        ("Cosmos", "AutoencoderKLCosmos"),
    ),
    Model(
        "Wan",
        "WanPipeline",
        (
            *(("head_modulation",), ("condition_embedder_time_proj",), ("vace_blocks_",), ("residual_0_gamma",)),
            *(("_self_attn_q_", "_cross_attn_"), ("blocks_0_attn1_to_", "blocks_0_ffn_")),
        ),
        ("Wan", "SkyReels", "ChronoEdit", "AutoencoderKLWan"),
    ),
    Model(
        "Kandinsky",
        "Kandinsky5T2IPipeline",
        (("visual_transformer_blocks_",), ("add_time_condition_",)),
        ("Kandinsky",),
    ),
    Model("Krea 2", "Krea2Pipeline", (("txtfusion_",), ("text_fusion_",)), ("Krea2",)),
    Model(
        "FLUX.1",
        "FluxPipeline",
        (
            *(("double_blocks_",), ("single_blocks_",), ("single_transformer_blocks_",), ("redux_up_",)),
            ("controlnet_x_embedder", "context_embedder"),
        ),
        ("Flux", "ReduxImageEncoder"),
    ),
    Model(
        "AnimateDiff",
        "AnimateDiffPipeline",
        (("motion_modules_",),),
        ("AnimateDiff", "MotionAdapter", "UNetMotion", "SparseControlNet", "PIA"),
    ),
    Model(
        "Stable Video Diffusion",
        "StableVideoDiffusionPipeline",
        (("temporal_transformer_blocks_",), ("time_stack_",), ("time_mixer_",)),
        ("StableVideoDiffusion", "UNetSpatioTemporal", "AutoencoderKLTemporalDecoder", "I2VGenXL", "TextToVideo"),
    ),
    Model("Kolors", "KolorsPipeline", (), ("Kolors", "ChatGLM")),
    Model(
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        (*((*unet, sign) for unet in UNET for sign in _XL), ("edm_mean",)),
        ("StableDiffusionXL", "ControlNetUnion"),
        widths=(2048, 1280),
    ),
    Model("Stable Diffusion 2", "StableDiffusionPipeline", (("cond_stage_model_model_",),), widths=(1024,)),
    Model(
        "Stable Diffusion 1",
        "StableDiffusionPipeline",
        (*UNET, ("cond_stage_model_transformer_",), ("lora_te_", "lora_unet_down_blocks")),
        (
            *(
                "StableDiffusion",
                "UNet2DCondition",
                "ControlNetModel",
                "ControlNetXS",
                "UNetControlNetXS",
                "T2IAdapter",
            ),
            *("MultiControlNet", "MultiAdapter", "LatentConsistency", "Semantic", "StableUnCLIP"),
        ),
        widths=(768,),
    ),
)

# What a file is for, beside a whole model: what it is called, and names of its tensors. The first that matches counts.
PARTS: tuple[tuple[str, Marks], ...] = (
    ("a T2I-adapter", (("adapter_body_0_",), ("\nbody_0_block1_",), ("\nbody_0_resnets_",))),
    ("a ControlNet-LLLite", (("lllite_unet_",),)),
    ("an IP-adapter", (("to_k_ip",), ("_ip_weight",), ("\nip_adapter_",), ("\nimage_proj_",), ("ip_adapter_double_",))),
    (
        "a ControlNet",
        (
            *(
                ("controlnet_cond_embedding_",),
                ("controlnet_down_blocks_",),
                ("control_model_",),
                ("input_hint_block_",),
            ),
            *(("controlnet_blocks_",), ("controlnet_x_embedder",), ("zero_convs_",), ("control_layers_",)),
        ),
    ),
    (
        "a LoRA",
        (
            *(
                ("_lora_a_",),
                ("_lora_b_",),
                ("_lora_down_",),
                ("_lora_up_",),
                ("_lora_linear_layer_",),
                ("dora_scale",),
            ),
            *(("hada_w1_",), ("lokr_w1",), ("lokr_w2",), ("oft_blocks",), ("_diff\n",), ("_diff_b\n",), ("glora_",)),
        ),
    ),
)

# Networks that are no diffusion model: what a file is, names of its tensors, the remedy.
ENCODERS = "Stable Diffusion 3 reads text with CLIP-L, OpenCLIP bigG and T5-XXL: use these."
NETWORKS: tuple[tuple[str, Marks, str], ...] = (
    (
        "an upscaler of pictures (ESRGAN or a relative)",
        (("\nconv_first_", "\nconv_last_"), ("rdb1_conv1_",), ("\nmodel_1_sub_0_",)),
        "Draw larger pictures with height= and width=, or enlarge them with the upscaler's own program.",
    ),
    (
        "a language model (Llama, Qwen, Gemma or a relative), as other models read prompts with",
        (("\nmodel_layers_0_self_attn_q_proj_",), ("\nlayers_0_self_attn_q_proj_",), ("language_model_",)),
        ENCODERS,
    ),
    ("a UMT5 encoder, of Wan or AuraFlow", (("block_1_layer_0_selfattention_relative_attention_bias",),), ENCODERS),
    ("a BERT encoder, of Hunyuan-DiT", (("embeddings_word_embeddings_",),), ENCODERS),
)
# A text encoder of Stable Diffusion 3 -> width of a relative -> which that is.
TEXT_WIDTHS = {
    "a T5 encoder": {512: "T5-small", 768: "T5-base", 1024: "T5-large", 2048: "T5-XL"},
    "a CLIP text encoder": {512: "CLIP-B", 1024: "OpenCLIP-H, of Stable Diffusion 2"},
}
# Width of the texts that an IP-adapter stands beside -> the model that it is for.
IP_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 4096: "FLUX.1"}
# Width of a textual inversion -> whose it is; 768 and 1280 are Stable Diffusion 3's, and those of XL.
WORD_WIDTHS = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 4096: "T5-XXL"}
# Channels of a VAE's latents -> whose it is; Stable Diffusion 3 and FLUX.1 both have 16.
VAE_CHANNELS = {4: "Stable Diffusion 1, 2 or XL", 32: "FLUX.2"}
FLUX_SCALING = (0.3611, 0.1159)  # scaling and shift of the latents of FLUX.1's VAE, which tell it from others
VAE_REMEDY = "Use the VAE of Stable Diffusion 3, which has 16 channels."

# What a network of Stable Diffusion 3 is called, names of its tensors, what loads it, its role.
WORD = ("Load it with load_textual_inversion() of a pipeline.", "word")
OWN: tuple[tuple[str, Marks, str, str], ...] = (
    ("a textual inversion", (("\nclip_l\n",), ("\nclip_g\n",), ("\nemb_params\n",)), *WORD),
    (
        "a transformer of Stable Diffusion 3",
        (("joint_blocks_", "context_block"), ("\ntransformer_blocks_0_attn_", "\npos_embed_proj_", "\nproj_out_")),
        "Load it with from_single_file() of a pipeline or of SD3Transformer2DModel.",
        "network",
    ),
    (
        "a VAE",
        (("decoder_conv_in_", "decoder_conv_out_"),),
        "Load it with AutoencoderKL.from_single_file().",
        "network",
    ),
    (
        "a CLIP text encoder",
        (("text_model_encoder_layers_0_",),),
        "Load it with CLIPTextModelWithProjection.from_single_file().",
        "network",
    ),
    (
        "a T5 encoder",
        (("encoder_block_0_layer_0_selfattention_",),),
        "Load it with T5EncoderModel.from_single_file().",
        "network",
    ),
)
# A part (PARTS) that no other model is known for -> what to do with it, its role.
OWN_PARTS = {
    "a LoRA": ("Load it with load_lora_weights() of a pipeline.", "adapter"),
    "an IP-adapter": ("Load it with load_ip_adapter() of a pipeline.", "ip_adapter"),
    "a ControlNet": ("Load it with SD3ControlNetModel.from_single_file(), and pass it to a pipeline.", "network"),
    "a T2I-adapter": ("It is for Stable Diffusion 1 or XL; here use a ControlNet for Stable Diffusion 3.", ""),
    "a ControlNet-LLLite": ("It is for Stable Diffusion XL; here use a ControlNet for Stable Diffusion 3.", ""),
}


def model(name: str) -> Model:
    """The entry of MODELS called ``name``."""
    return next(model for model in MODELS if model.name == name)


# ------------------------------------------------------------------------------------------------------ quantized files

# Names of tensors, with their dots -> how the file is quantized.
QUANTIZED: tuple[tuple[str, Marks], ...] = (
    ("bitsandbytes, in nf4", ((".quant_state.bitsandbytes__nf4",),)),
    ("bitsandbytes, in fp4", ((".quant_state.bitsandbytes__fp4",),)),
    ("bitsandbytes, in 4 bits", ((".absmax\n", ".quant_map\n"), (".weight.absmax\n",))),
    ("bitsandbytes, in int8", ((".SCB\n",),)),
    ("SVDQuant (nunchaku), in 4 bits", ((".qweight\n", ".wscales\n"), (".qweight\n", ".smooth"))),
    ("GPTQ, in 4 or 8 bits", ((".qweight\n", ".g_idx\n"),)),
    ("AWQ or GPTQ, in 4 bits", ((".qweight\n", ".qzeros\n"),)),
    ("quanto", ((".weight._data\n",), (".weight._scale\n",))),
    ("torchao", (("weight_qdata\n",), (".weight:qdata\n",), ("_weight:_data\n",))),
    ("NVIDIA ModelOpt", ((".weight_quantizer.",),)),
    ("NVIDIA, in nvfp4", ((".weight_scale_2\n",),)),
    ("compressed-tensors", ((".weight_packed\n",),)),
    ("ComfyUI, in 8-bit floats with scales", ((".scale_weight\n",), ("scaled_fp8\n",))),
)
# ``quant_method`` of a ``quantization_config`` -> who quantizes so.
QUANT_METHODS = {
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes, in 4 bits",
    "bitsandbytes_8bit": "bitsandbytes, in int8",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "gguf": "GGUF",
    "torchao": "torchao",
    "quanto": "quanto",
    "modelopt": "NVIDIA ModelOpt",
    "svdquant": "SVDQuant (nunchaku)",
    "fp8": "8-bit floats",
    "compressed-tensors": "compressed-tensors",
}
