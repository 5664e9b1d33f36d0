"""Options of other trainers, by what they are called here: diffusers' and ppdiffusers' scripts, kohya's, SimpleTuner.

docs/make_training_options.py writes the tables of docs/training-options.md from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ..utils.errors import InputError

JOINT_ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]  # diffusers' default of a LoRA

# Option without its dashes -> the setting that it is.
SETTINGS = {
    # diffusers, ppdiffusers
    "pretrained_model_name_or_path": "model",
    "output_dir": "output",
    "instance_data_dir": "data.path",
    "dataset_name": "data.path",
    "train_data_dir": "data.path",
    "caption_column": "data.caption_column",
    "image_column": "data.image_column",
    "conditioning_image_column": "data.control_column",
    "controlnet_model_name_or_path": "controlnet.from_pretrained",
    "instance_prompt": "data.instance_prompt",
    "class_data_dir": "data.class_path",
    "class_prompt": "data.class_prompt",
    "num_class_images": "data.class_images",
    "prior_loss_weight": "data.prior_weight",
    "resolution": "data.resolution",
    "random_flip": "data.random_flip",
    "train_batch_size": "data.batch_size",
    "rank": "lora.rank",
    "lora_dropout": "lora.dropout",
    "train_text_encoder": "lora.train_text_encoders",
    "learning_rate": "training.learning_rate",
    "lr_warmup_steps": "training.warmup_steps",
    "max_train_steps": "training.max_steps",
    "gradient_accumulation_steps": "training.batches_per_step",
    "gradient_checkpointing": "gradient_checkpointing",
    "max_grad_norm": "training.max_grad_norm",
    "adam_weight_decay": "training.weight_decay",
    "adam_epsilon": "training.epsilon",
    "mixed_precision": "training.mixed_precision",
    "checkpointing_steps": "training.save_every",
    "checkpoints_total_limit": "training.checkpoints_total_limit",
    "validation_steps": "training.validate_every",
    "report_to": "training.report_to",
    "proportion_empty_prompts": "text.caption_dropout",
    "caption_dropout": "text.caption_dropout",
    "max_sequence_length": "text.max_sequence_length",
    "seed": "training.seed",
    "initializer_token": "textual_inversion.initial_word",
    "num_vectors": "textual_inversion.vectors",
    # kohya's sd-scripts
    "init_word": "textual_inversion.initial_word",
    "num_vectors_per_token": "textual_inversion.vectors",
    "network_dim": "lora.rank",
    "network_alpha": "lora.alpha",
    "unet_lr": "training.learning_rate",
    "training_shift": "flow.shift",
    "save_every_n_steps": "training.save_every",
    "sample_every_n_steps": "training.validate_every",
    "t5xxl_max_token_length": "text.max_sequence_length",
    "reg_data_dir": "data.class_path",
    "log_with": "training.report_to",
    "caption_dropout_rate": "text.caption_dropout",
    # SimpleTuner
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "flow_schedule_shift": "flow.shift",
}
# Options that are several settings, or whose values are others here.
CONVERTED: dict[str, Callable[[Any], Mapping[str, Any]]] = {
    "placeholder_token": lambda value: {"method": "textual_inversion", "textual_inversion.token": value},
    "token_string": lambda value: {"method": "textual_inversion", "textual_inversion.token": value},
    "lora_layers": lambda value: {"lora.targets": [part.strip() for part in value.split(",")]},
    "lr_scheduler": lambda value: {
        "training.lr_schedule": "constant" if value == "constant_with_warmup" else value,
        "training.final_lr_ratio": 0.0,
    },
    "optimizer": lambda value: {"training.optimizer": value.lower()},
    "optimizer_type": lambda value: {"training.optimizer": value.lower()},
    "validation_prompt": lambda value: {"validation.prompts": [value]},
    "use_dora": lambda value: {"lora.kind": "dora"},
    "lora_blocks": lambda value: {"lora.targets": _in_blocks(str(value))},
    "network_module": lambda value: {"method": _method_of(value)},
}
# Options that ask for what is always done.
DONE_ANYWAY = {
    "cache_latents": "latents are always cached",
    "cache_latents_to_disk": "latents are always cached on disk",
    "cache_text_encoder_outputs": "text is always cached",
    "cache_text_encoder_outputs_to_disk": "text is always cached on disk",
    "center_crop": "pictures are cut at their centre, unless data.random_crop is set",
    "with_prior_preservation": "a data.class_prompt asks for it",
    "allow_tf32": "Paddle decides",
    "upcast_before_saving": "what is trained is float32",
    "set_grads_to_none": "gradients are freed after each step",
    "enable_xformers_memory_efficient_attention": "attention never holds all of its weights",
    "offload": "networks that are not needed any more leave the memory",
    "network_train_unet_only": "the transformer alone is trained, unless lora.train_text_encoders is set",
    "repeats": "a run is measured in steps, in which all pictures come equally often",
    "dataloader_num_workers": "pictures are encoded once, and then read from the cache",
    "sample_batch_size": "pictures of the class are drawn one by one",
}
# Options whose work is not done here, and what to do.
_REFUSED_OF_DIFFUSERS = {
    "use_8bit_adam": "no kept library has 8-bit Adam for Paddle; training.optimizer=adafactor needs less memory still",
    "text_encoder_lr": "text encoders learn at training.learning_rate",
    "adam_weight_decay_text_encoder": "all that is trained has training.weight_decay",
    "prodigy_beta3": "Prodigy is in no kept library; use training.optimizer=adamw",
    "num_train_epochs": "set training.max_steps: epochs times pictures by batch size",
    "scale_lr": "set training.learning_rate",
    "lr_num_cycles": "a schedule is named by training.lr_schedule alone",
    "lr_power": "a schedule is named by training.lr_schedule alone",
    "aspect_ratio_buckets": "set data.max_aspect, e.g. 2; sizes follow from it",
    "dataset_config_name": "save that configuration by datasets' save_to_disk, and name its directory as data.path",
    "prior_generation_precision": "pictures of the class are drawn in the precision of the model; leave it out",
    "validation_epochs": "set training.validate_every, in steps",
    "num_validation_images": "a picture is drawn for each of validation.prompts; give more of them",
    "validation_image": "validation pictures follow the first control picture of the data",
    "num_extra_conditioning_channels": "ControlNets that read a mask are not trained",
    "logging_dir": "the log is log.jsonl in the output directory",
    "push_to_hub": "upload the result by huggingface-cli",
}
_REFUSED_OF_KOHYA = {
    "apply_t5_attn_mask": "Stable Diffusion 3 was trained without masks, and pipelines have none",
    "apply_lg_attn_mask": "Stable Diffusion 3 was trained without masks, and pipelines have none",
    "clip_l_dropout_rate": "text.encoder_dropout drops each encoder with one probability",
    "clip_g_dropout_rate": "text.encoder_dropout drops each encoder with one probability",
    "t5_dropout_rate": "text.encoder_dropout drops each encoder with one probability",
    "shuffle_caption": "captions are encoded once, as they are written",
    "keep_tokens": "captions are encoded once, as they are written",
    "caption_extension": "captions are in .txt files, or in metadata.jsonl or metadata.csv",
    "dataset_config": "name the pictures as data.path, and set the others of data.*",
    "enable_bucket": "set data.max_aspect, e.g. 2; sizes follow from it",
    "min_bucket_reso": "set data.max_aspect, e.g. 2; sizes follow from it",
    "max_bucket_reso": "set data.max_aspect, e.g. 2; sizes follow from it",
    "bucket_reso_steps": "set data.max_aspect, e.g. 2; sizes follow from it",
    "bucket_no_upscale": "leave small pictures out by data.skip_broken=true",
    "network_args": "set lora.kind, lora.targets and lora.dropout",
    "network_weights": "a run resumes a state, by --resume; a LoRA file has no moments to go on with",
    "min_timestep": "all times are trained; flow.density says how often",
    "max_timestep": "all times are trained; flow.density says how often",
    "min_snr_gamma": "flow.weight=min_snr is Min-SNR's weight for flows, with gamma 5",
    "optimizer_args": "set training.betas, training.weight_decay and training.epsilon",
    "fused_backward_pass": "training.optimizer=adafactor and gradient_checkpointing=true need less memory",
    "full_bf16": "updates vanish in bfloat16; training.mixed_precision=bf16 keeps the trained weights in float32",
    "full_fp16": "updates vanish in float16; training.mixed_precision=fp16 keeps the trained weights in float32",
    "fp8_base": "weights=int8 or weights=bfloat16 holds the frozen weights in fewer bits",
    "blocks_to_swap": "weights=int8 and gradient_checkpointing=true need less memory",
    "save_every_n_epochs": "set training.save_every, in steps",
    "max_train_epochs": "set training.max_steps: epochs times pictures by batch size",
    "sample_prompts": "write the prompts into validation.prompts",
    "pos_emb_random_crop_rate": "positions are cut from the centre of their table, as pipelines cut them",
    "enable_scaled_pos_embed": "positions are cut from the centre of their table, as pipelines cut them",
}
_REFUSED_OF_SIMPLETUNER = {
    "flow_schedule_auto_shift": "flow.shift_by_size=true lets the shift grow with the square root of the pixels",
    "t5_padding": "T5's padding is as pipelines have it; zeros in its place collapse Stable Diffusion 3",
    "base_model_precision": "weights=int8 or weights=bfloat16 holds the frozen weights in fewer bits",
}
REFUSED = {**_REFUSED_OF_DIFFUSERS, **_REFUSED_OF_KOHYA, **_REFUSED_OF_SIMPLETUNER}
# Whose an option is that diffusers' scripts have not.
KOHYA = frozenset(
    {"network_dim", "network_alpha", "unet_lr", "training_shift", "save_every_n_steps", "sample_every_n_steps"}
    | {"t5xxl_max_token_length", "reg_data_dir", "log_with", "caption_dropout_rate", "optimizer_type", "init_word"}
    | {"num_vectors_per_token", "token_string", "network_module", "network_train_unet_only", "cache_latents_to_disk"}
    | {"cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", *_REFUSED_OF_KOHYA}
)
SIMPLETUNER = frozenset({"lora_rank", "lora_alpha", "flow_schedule_shift", *_REFUSED_OF_SIMPLETUNER})
# diffusers' options of times and weights go together, with these defaults.
FLOW = {"weighting_scheme": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29,
        "precondition_outputs": 1}  # fmt: skip
BETAS = ("adam_beta1", "adam_beta2")
FLAGS = frozenset(
    {"random_flip", "train_text_encoder", "gradient_checkpointing", "use_dora", "use_8bit_adam", "scale_lr"}
    | {"push_to_hub", "apply_t5_attn_mask", "apply_lg_attn_mask", "shuffle_caption", "enable_bucket", "full_bf16"}
    | {"bucket_no_upscale", "fused_backward_pass", "full_fp16", "fp8_base", "enable_scaled_pos_embed"}
    | {"flow_schedule_auto_shift"}
    | set(DONE_ANYWAY) - {"repeats", "dataloader_num_workers", "sample_batch_size"}
)
ALL = (*SETTINGS, *CONVERTED, *DONE_ANYWAY, *REFUSED, *FLOW, *BETAS)


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that other trainers' options are, with the meaning that they have there.

    Raises:
        InputError: an option whose work is not done here; names what to do.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in REFUSED:
            raise InputError(f"--{name}: {REFUSED[name]}.")
        if name in SETTINGS:
            found[SETTINGS[name]] = value
        elif name in CONVERTED:
            found.update(CONVERTED[name](value))
    if "lora_layers" in options and "lora_blocks" in options:
        layers = CONVERTED["lora_layers"](options["lora_layers"])["lora.targets"]
        found["lora.targets"] = _in_blocks(str(options["lora_blocks"]), layers)
    if any(name in options for name in FLOW):
        found.update(flow_settings(**{**FLOW, **{name: options[name] for name in FLOW if name in options}}))
    if any(name in options for name in BETAS):
        found["training.betas"] = [float(options.get(name, default)) for name, default in zip(BETAS, (0.9, 0.999))]
    return found


def flow_settings(
    weighting_scheme: str, logit_mean: float, logit_std: float, mode_scale: float, precondition_outputs: int
) -> dict[str, Any]:
    """What diffusers' scripts train with these options: indices into the scheduler's table, from noise to data, and
    the squared error of the data (``precondition_outputs`` 1) or of the velocity (0), times the scheme's weight.

    Raises:
        InputError: an unknown scheme.
    """
    if weighting_scheme not in ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none"):
        raise InputError(
            f"--weighting_scheme {weighting_scheme}: use 'sigma_sqrt', 'logit_normal', 'mode', 'cosmap' or 'none'."
        )
    weights = [weighting_scheme] if weighting_scheme in ("sigma_sqrt", "cosmap") else []
    weights += ["precondition"] if int(precondition_outputs) else []
    return {
        "flow.indexed": True,
        "flow.density": weighting_scheme if weighting_scheme in ("logit_normal", "mode") else "uniform",
        "flow.logit_mean": float(logit_mean),
        "flow.logit_std": float(logit_std),
        "flow.mode_scale": float(mode_scale),
        "flow.weight": "*".join(weights) or "none",
    }


def _in_blocks(blocks, layers=JOINT_ATTENTION):
    """Names of layers in these blocks of the transformer, e.g. "12,13"."""
    return [f"transformer_blocks.{block.strip()}.{layer}" for block in blocks.split(",") for layer in layers]


def _method_of(module):
    if not str(module).startswith("networks.lora"):
        raise InputError(
            f"--network_module {module}: LoRAs are trained; for others set lora.kind=lokr or lora.kind=dora."
        )
    return "lora"
