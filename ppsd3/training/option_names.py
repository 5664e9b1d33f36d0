"""Options of other trainers, by what they are called here: diffusers' and ppdiffusers' scripts, and kohya's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ..utils.errors import InputError

FLAG = "flag"  # an option without a value

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
    "caption_dropout_rate": "text.caption_dropout",
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
}
# Options that ask for what is always done.
DONE_ANYWAY = {
    "cache_latents": "latents are always cached",
    "cache_latents_to_disk": "latents are always cached on disk",
    "cache_text_encoder_outputs": "text is always cached",
    "center_crop": "pictures are cut at their centre, unless data.random_crop is set",
    "with_prior_preservation": "a data.class_prompt asks for it",
    "allow_tf32": "Paddle decides",
}
# Options whose work is not done here, and what to do.
REFUSED = {
    "use_8bit_adam": "no kept library has 8-bit Adam for Paddle; training.optimizer=adafactor needs less memory still",
    "text_encoder_lr": "text encoders learn at training.learning_rate",
    "apply_t5_attn_mask": "Stable Diffusion 3 was trained without masks, and pipelines have none",
    "apply_lg_attn_mask": "Stable Diffusion 3 was trained without masks, and pipelines have none",
    "push_to_hub": "upload the result by huggingface-cli",
    "scale_lr": "set training.learning_rate",
}
# diffusers' options of times and weights go together, with these defaults.
FLOW = {"weighting_scheme": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29,
        "precondition_outputs": 1}  # fmt: skip
BETAS = ("adam_beta1", "adam_beta2")
FLAGS = frozenset(
    {"random_flip", "train_text_encoder", "gradient_checkpointing", *DONE_ANYWAY}
    | {name for name in REFUSED if name != "text_encoder_lr"}
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
