"""What diffusers, ppdiffusers, PEFT and transformers have and ppsd3 has not: what to use instead.

Each table maps a regular expression of whole names to one sentence; the first match counts. A new refusal is a line.
:func:`explain` makes the message of every one of them.
"""

from __future__ import annotations

import difflib
import importlib.abc
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import NoSuchImportError, UnknownArgumentError, UnknownNameError

# Names that people import.
NAMES = {
    r"(SD3)?ControlNetModel|MultiControlNetModel": "ControlNets of Stable Diffusion 3 are SD3ControlNetModel.",
    r"(BitsAndBytes|TorchAo|Quanto|NVIDIAModelOpt|\w*Quantization)Config|quantizers": (
        "Load the pipeline and call pipe.quantize('int8'), or load it with storage_dtype='float16'."
    ),
    r"UNet\w*|Transformer2DModel|\w*Transformer\w*Model|MotionAdapter|PriorTransformer": (
        "ppsd3 has the networks of Stable Diffusion 3 alone: SD3Transformer2DModel, SD3ControlNetModel, AutoencoderKL."
    ),
    r"VQModel|\w*Autoencoder\w*|ConsistencyDecoderVAE": "Stable Diffusion 3 has AutoencoderKL, and AutoencoderTiny.",
    r"(?!FlowMatch)\w*Scheduler": (
        "Stable Diffusion 3 is a flow, sampled by FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, "
        "FlowMatchLCMScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler."
    ),
    r"PaddleInfer\w*|FastDeploy\w*": "Run static graphs by pipe.compile(), or write them by `ppsd3 export`.",
    r"(?!StableDiffusion3)\w+Pipeline": (
        "ppsd3 draws with Stable Diffusion 3 and 3.5 alone: StableDiffusion3Pipeline and its Img2Img, Inpaint, "
        "ControlNet and PAG relatives."
    ),
    r"CLIPTextModel|CLIPModel|ClipTextModel": (
        "Stable Diffusion 3 reads the projected text too: use CLIPTextModelWithProjection."
    ),
    r"CLIPVision\w*|CLIPImageProcessor|CLIPFeatureExtractor|CLIPProcessor|AutoImageProcessor|AutoProcessor": (
        "Pictures are read for the IP-adapter by SiglipVisionModel and SiglipImageProcessor."
    ),
    r"Siglip(Model|Processor)": "Use SiglipVisionModel and SiglipImageProcessor.",
    r"T5(Model|ForConditionalGeneration)|UMT5\w*": "Stable Diffusion 3 uses the encoder alone: T5EncoderModel.",
    r"PretrainedConfig|AutoConfig|\w*TextConfig|T5Config": (
        "A network's configuration is its `config`, read from config.json by from_pretrained()."
    ),
    r"AutoTokenizer|PreTrainedTokenizer\w*": "Use CLIPTokenizer.from_pretrained() or T5Tokenizer.from_pretrained().",
    r"AutoModel|AutoModelFor\w+": "Use the class: SD3Transformer2DModel, AutoencoderKL, CLIPTextModelWithProjection.",
    r"StableDiffusionSafetyChecker|safety_checker": "Stable Diffusion 3 comes without a safety checker. Leave it out.",
    r"IPAdapterScaleCutoffCallback": "Call pipe.set_ip_adapter_scale(scale) before drawing.",
    r"SD(XL)?(Controlnet)?CFGCutoffCallback": "It is ppsd3.callbacks.SD3CFGCutoffCallback here.",
    r"AttnProcessor\w*|XFormers\w*|Fused\w*AttnProcessor\w*|SlicedAttn\w*": (
        "The attention processor is ppsd3.models.attention_processor.JointAttnProcessor2_5; fused projections are "
        "pipe.fuse_qkv_projections()."
    ),
    r"(Flax|Onnx|TF)\w+": "ppsd3 runs on Paddle alone.",
    r"Accelerator|accelerate|ProjectConfiguration|set_seed": (
        "Training is ppsd3.training.trainer.Trainer, on several devices by paddle.distributed.launch; a seed is "
        "paddle.seed(seed)."
    ),
    r"peft|PeftModel|get_peft_model|inject_adapter_in_model|LoHaConfig|LoKrConfig|AdaLoraConfig": (
        "Add a LoRA with transformer.add_adapter(ppsd3.LoraConfig(r=4)); its tensors are those of "
        "ppsd3.get_peft_model_state_dict(transformer)."
    ),
    r"(StableDiffusion|StableDiffusionXL|Flux)?LoraLoaderMixin": "It is ppsd3.loaders.SD3LoraLoaderMixin here.",
    r"export_to_(video|gif|obj|ply)|load_video|\w*video\w*": "Stable Diffusion 3 draws pictures: image.save('x.png').",
    r"check_min_version|require_version": "Leave it out: versions of diffusers say nothing about ppsd3's.",
    r"is_\w+_available|is_\w+_version": "Leave it out: ppsd3 runs on Paddle alone and needs no other package.",
    r"pil_utils|PIL_INTERPOLATION|ppdiffusers_url_download|load_pt|smart_load|convert_\w+": (
        "Use PIL.Image, and from_pretrained() or from_single_file() for weights."
    ),
    r"deprecate|BACKENDS_MAPPING|replace_example_docstring|DIFFUSERS_CACHE|PPDIFFUSERS_CACHE|hub_utils|hf_upload": (
        "It is a part of diffusers' own machinery. Leave it out; the cache is from_pretrained(cache_dir=)."
    ),
    r"guiders|modular_pipelines|experimental|patches": (
        "A call takes guidance=, e.g. ppsd3.ClassifierFreeGuidance(7.0); ppsd3 changes nothing of Paddle."
    ),
    r"hooks": "Use pipe.enable_model_cpu_offload(), or pipe.enable_cache(ppsd3.TaylorCache()).",
    r"modeling_utils": "The base of the networks is ppsd3.ModelMixin.",
    r"unet_2d_condition|unet_2d_blocks|unets|controlnets|autoencoders|transformers": (
        "The networks are ppsd3.SD3Transformer2DModel, ppsd3.SD3ControlNetModel and ppsd3.AutoencoderKL."
    ),
    r"compute_snr|compute_dream_and_update_latents": "It is for noise schedules of diffusion; this is a flow.",
    r"unet_lora_state_dict": "Use ppsd3.get_peft_model_state_dict(transformer).",
    r"free_memory": "Use ppsd3.utils.device.release_freed_memory().",
    r"(un)?freeze_(params|model)|unwrap_model": "Use network.requires_grad_(True) or network.requires_grad_(False).",
    r"main_process_first": "Use paddle.distributed.get_rank().",
}

# Methods and attributes of pipelines and networks.
METHODS = {
    r"(en|dis)able_freeu": "FreeU changes a UNet's skip connections, and this transformer has none. Leave it out.",
    r"enable_group_offload|apply_group_offloading": (
        "Use pipe.enable_model_cpu_offload() or pipe.enable_sequential_cpu_offload(); on the CPU, "
        "load_components='on_demand' of from_pretrained()."
    ),
    r"reset_device_map|hf_device_map": (
        "Networks are not spread over devices here: pipe.to('cpu') or pipe.to('gpu') moves them all, and "
        "pipe.remove_all_hooks() ends offloading."
    ),
    r"push_to_hub": "Call save_pretrained(directory), then `huggingface-cli upload ORG/NAME directory`.",
    r"set_lora_device": "Adapters stay beside their layers. Remove one with delete_adapters(name) and load it again.",
    r"set_attention_backend|reset_attention_backend": (
        "The kernel is chosen by ppsd3.ops.use_kernels(attention=...); `ppsd3 info` lists those of this machine."
    ),
    r"compile_repeated_blocks": "Call compile(): it traces each block once, for all sizes and steps.",
    r"unet": "The network that denoises is pipe.transformer.",
    r"upcast_vae": "The VAE computes in its own dtype: pipe.vae.to(dtype='float32').",
    r"set_chunk_feed_forward|(en|dis)able_chunk_feed_forward": (
        "Feed-forward layers run in one piece. For less memory, quantize('int8') or enable_vae_tiling()."
    ),
    r"add_weighted_adapter|merge_adapter|load_attn_procs|save_attn_procs|unload_lora_adapter": (
        "Use set_adapters(names, weights), fuse_lora(), load_lora_weights() and save_lora_weights()."
    ),
    r"set_use_memory_efficient_attention_xformers|(en|dis)able_npu_flash_attention|(en|dis)able_xla_flash_attention": (
        "Attention is memory-efficient by itself. Leave it out."
    ),
    r"set_use_npu_flash_attention": "Attention is memory-efficient by itself. Leave it out.",
    r"run_safety_checker|safety_checker|requires_safety_checker": "There is no safety checker. Leave it out.",
    r"decode_latents": "Use pipe.vae.decode(pipe.vae.unscale_latents(latents)).sample.",
    r"get_timesteps|prepare_image_latents|prepare_mask_latents|get_guidance_scale_embedding|prepare_control_image": (
        "A task makes them inside the call: pass `image`, `strength`, `mask_image` or `control_image` to it."
    ),
    r"enable_parallelism|enable_context_parallel|parallelize": "Draw on several devices by paddle.distributed.launch.",
    r"half|float|bfloat16": "Use to(dtype='float16'), to(dtype='float32') or to(dtype='bfloat16').",
    r"cuda": "Use to('gpu').",
    r"set_default_attn_processor": "Use set_attn_processor(JointAttnProcessor2_5()).",
    r"(resize|set)_(token|input)_embeddings": "Add a word with pipe.load_textual_inversion().",
    r"gradient_checkpointing_(enable|disable)": "Use enable_gradient_checkpointing().",
    r"dequantize": "Load the network again, without quantize().",
}

# Arguments of a pipeline's call.
CALL_ARGUMENTS = {
    r"callback": "Use callback_on_step_end(pipe, step, timestep, tensors), which returns a dict of tensors.",
    r"callback_steps": "Leave it out: callback_on_step_end is called after each step, and may return {}.",
    r"cross_attention_kwargs|attention_kwargs": "Use joint_attention_kwargs, e.g. {'scale': 0.8} for LoRA layers.",
    r"seed": "Use generator=ppsd3.TorchGenerator(seed).",
    r"eta": "It is for DDIM alone. Leave it out.",
    r"guidance_rescale": "Use guidance=ppsd3.GuidanceRescale(...).",
    r"true_cfg_scale": "Use guidance_scale.",
    r"device|dtype|torch_dtype|paddle_dtype": "Move the pipeline before the call: pipe.to(device, dtype).",
    r"lora_scale": "Use joint_attention_kwargs={'scale': 0.8}, or pipe.set_adapters(name, 0.8).",
    r"original_size|target_size|crops_coords_top_left|negative_\w*size|negative_crops\w*|aesthetic_score": (
        "It is for Stable Diffusion XL alone. Leave it out; height and width are the size."
    ),
    r"init_image": "Use image.",
    r"num_images": "Use num_images_per_prompt.",
    r"num_steps|steps": "Use num_inference_steps.",
    r"denoising_(start|end)": "Use strength in image to image, or sigmas for a schedule of your own.",
    r"guess_mode": "Use guidance_scale=1.0 with an empty prompt.",
    r"control_mode|controlnet_keep": "Each ControlNet is a model of its own: pass several to the pipeline.",
    r"parse_prompt_type|max_embeddings_multiples|parse_weight": "Set pipe.prompt_reader = ppsd3.WeightedPrompts().",
    r"use_pooled|is_cancelled_callback": "A callback sets pipe._interrupt = True to stop.",
}

# Methods, and arguments of the call, of a tokenizer.
TOKENIZER = {
    r"add_special_tokens": "Add tokens with add_tokens(['<cat>']); pipe.load_textual_inversion() does it for a word.",
    r"(batch_)?encode_plus|batch_encode|prepare_for_model": "Call the tokenizer: tokenizer(texts).",
    r"pad|get_special_tokens_mask": "Call the tokenizer with padding='longest'; its attention_mask marks the padding.",
    r"get_vocab|vocab": "Use convert_tokens_to_ids(token) and convert_ids_to_tokens(ids).",
    r"save_vocabulary": "Use save_pretrained(directory).",
    r"padding_side|truncation_side|return_token_type_ids|return_special_tokens_mask|return_offsets_mapping|stride": (
        "Rows are filled and cut on the right; spans(text) gives ids with their positions."
    ),
    r"text_pair|is_split_into_words|pad_to_multiple_of|verbose": "It has no use for these encoders. Leave it out.",
    r"apply_chat_template|chat_template": "Stable Diffusion 3 reads plain text.",
}

# Methods and attributes of a scheduler.
SCHEDULERS = {
    r"add_noise": "Use scale_noise(sample, timestep, noise).",
    r"scale_model_input": "The input of a flow's model is not scaled. Leave it out.",
    r"get_velocity": "The velocity is noise - sample.",
    r"alphas_cumprod|alphas|betas|final_alpha_cumprod": "A flow has sigmas: scheduler.sigmas.",
    r"previous_timestep": "Use scheduler.timesteps, which has them in order.",
}

# Settings of a LoraConfig.
LORA_SETTINGS = {
    "bias": "The biases of the layers stay as they are: leave it 'none'; lora_bias=True trains one beside each LoRA.",
    "modules_to_save": "Adapters are of linear layers alone. Leave it out.",
    "layers_to_transform": "Name the layers in target_modules, e.g. r'.*blocks\\.(0|1)\\..*to_q'.",
    "layers_pattern": "Name the layers in target_modules, e.g. r'.*blocks\\.(0|1)\\..*to_q'.",
    "fan_in_fan_out": "Weights are [out, in] here. Leave it out.",
    "rank": "Use r.",
    "alpha": "Use lora_alpha.",
    "dropout": "Use lora_dropout.",
    r"loftq_config|eva_config|corda_config|megatron_\w+|layer_replication|trainable_token_indices|\w*_config": (
        "It is a method of PEFT's that ppsd3 does not have. Leave it out."
    ),
    r"auto_mapping|peft_version|runtime_config|peft_type": "It is a note of PEFT's. Leave it out.",
}


def remedy_for(name: str, table: Mapping[str, str]) -> str | None:
    """The sentence that ``table`` has for ``name``, or None."""
    return next((remedy for pattern, remedy in table.items() if re.fullmatch(pattern, name)), None)


def nearest(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """A question with the one of ``known`` that is spelt most like ``name``; ``otherwise`` where none is like it."""
    found = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"Did you mean {found[0]!r}?" if found else otherwise


def explain(owner: str, name: str, known: Iterable[str], table: Mapping[str, str], kind: str = "") -> str:
    """What ``owner`` lacks, and what to use: the table's remedy, the nearest of ``known``, or else all of ``known``."""
    known = list(known)
    remedy = remedy_for(name, table)
    if remedy is None:
        remedy = nearest(name, known, f"It {'takes' if kind else 'has'} {', '.join(known)}.")
    return f"{owner} has no {kind}{name!r}. {remedy}"


class NoAttributeError(UnknownNameError):
    """``NoAttributeError(class_, name, table)``: an object of ``class_`` has no such attribute.

    The message is made when somebody reads it: most such errors answer a ``hasattr``.
    """

    def __str__(self) -> str:
        class_, name, table = self.args
        remedy = remedy_for(name, table)
        if remedy is None:
            known = [known for known in dir(class_) if not known.startswith("_")]
            remedy = nearest(name, known, f"help({class_.__name__}) lists those that it has.", cutoff=0.8)
        return f"{class_.__name__} has no attribute {name!r}. {remedy}"


def check_argument_names(
    owner: str, given: Iterable[str], known: Sequence[str], table: Mapping[str, str] | None = None
) -> None:
    """Raises UnknownArgumentError for the first of ``given`` that is not among ``known``."""
    for name in given:
        if name not in known:
            raise UnknownArgumentError(explain(owner, name, known, table or {}, "argument "))


class _Finder(importlib.abc.MetaPathFinder):
    """Answers the import of a name below ``ppsd3`` that nothing else finds; the last of the finders.

    ``from ppsd3 import X`` looks for a module of that name when the package has no such attribute, and would end in a
    message of Python's without a remedy. Modules from which programs import foreign names are made packages for that,
    by an empty ``__path__``.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        package, _, name = fullname.rpartition(".")
        if package.partition(".")[0] != "ppsd3":
            return
        top = sys.modules["ppsd3"].__all__
        if name in top:
            raise NoSuchImportError(f"{package} has no {name!r}. It is ppsd3.{name}.", name=fullname)
        if remedy_for(name, NAMES) is not None or name[:1].isupper():
            raise NoSuchImportError(explain(package, name, top, NAMES), name=fullname)


def answer_imports() -> None:
    """Gives imports of names that ppsd3 does not have a message with a remedy; other packages' are left alone."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
