"""Recipe of the bundled model: its sizes, and the stages that `examples/train_shapes.py` runs in order.

Each `run_*` takes the run's directory, resumes what it finds there and returns when its stage is complete.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import paddle

from ..models import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from ..ops import float32_matmul_precision
from ..pipelines import StableDiffusion3Pipeline
from ..pipelines.stable_diffusion_3.prompt_encoding import TextEncoders
from ..schedulers import FlowMatchEulerDiscreteScheduler
from ..training.autoencoder import AutoencoderTask, latent_statistics
from ..training.controlnet import ControlNetTask
from ..training.ema import EMA
from ..training.text_to_image import TextToImageTask
from ..training.texts import EncodedTexts, TextDropout
from ..training.timestep_sampling import LogitNormal
from ..training.trainer import Trainer, TrainingOptions
from ..transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from ..utils.hub import BUNDLED
from .dataset import LatentScenes, encode_scenes
from .reading import CaptionReadingTask
from .rendering import silhouettes
from .vocabulary import MAX_LENGTH, captions, train_clip_tokenizers, train_t5_tokenizer
from .world import RESOLUTION, render_batch, sample_scene

VAE: dict[str, Any] = dict(
    block_out_channels=(16, 32, 64, 64),  # an eighth of SD3's, since pictures are flat colours
    down_block_types=("DownEncoderBlock2D",) * 4,  # the number of levels sets the factor: 8, as SD3
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,  # SD3 has 2
    latent_channels=16,  # as SD3: more would be harder to generate, fewer harder to decode
    norm_num_groups=4,  # 4 channels a group at the finest level: smaller groups normalise a shape's hue away
    sample_size=RESOLUTION,
    use_quant_conv=False,  # as SD3
    use_post_quant_conv=False,
)
# CLIP towers of 3 layers: SD3 reads the penultimate one, so that tokens have passed two attentions.
CLIP_L: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=256,  # 4 times the width, as in CLIP
    projection_dim=64,
    num_hidden_layers=3,
    num_attention_heads=2,  # of 32 channels
    hidden_act="quick_gelu",  # as the published CLIP-L; bigG has gelu
)
CLIP_G: dict[str, Any] = dict(
    hidden_size=96,  # wider than CLIP-L, as in SD3: a mix-up of the two fails
    intermediate_size=384,
    projection_dim=96,
    num_hidden_layers=3,
    num_attention_heads=3,
    hidden_act="gelu",
)
T5: dict[str, Any] = dict(
    d_model=192,  # at least 64 + 96: CLIP's joined widths are padded to it
    d_kv=32,
    d_ff=384,  # twice the width, gated: three matrices where ungated layers have two
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",  # as T5 1.1
    dropout_rate=0.0,  # captions are drawn anew at each step: nothing to overfit
)
TRANSFORMER: dict[str, Any] = dict(
    sample_size=RESOLUTION // 8,
    patch_size=2,  # 4 x 4 image tokens: most tokens of a step are text
    in_channels=16,
    out_channels=16,
    num_layers=6,  # SD3-medium has 24, of 24 heads
    attention_head_dim=32,  # SD3's 64 would leave 3 heads
    num_attention_heads=6,
    joint_attention_dim=T5["d_model"],
    caption_projection_dim=192,  # the width: heads times their channels
    pooled_projection_dim=CLIP_L["projection_dim"] + CLIP_G["projection_dim"],
    pos_embed_max_size=8,  # patches a side: pictures of up to 128 pixels
)
TOWERS: dict[str, Any] = {
    "text_encoder": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer_2": CLIPTokenizer,
    "text_encoder_3": T5EncoderModel,
    "tokenizer_3": T5Tokenizer,
}
GUIDANCE_SCALE = 3.0  # it scores highest there; more draws four objects where three are asked for
SHIFT = 1.0  # of the sampling schedule: 64 latent cells need no more time at high noise
SCENES = 65536  # encoded pictures for the transformer: 134 MB in float16, each seen about 50 times
CONTROLLED_SCENES = 16384  # for the ControlNet, which only learns to read shapes and places
# SD3 drops encoders with 0.464, so that any subset works; less here. The caption "" becomes the negative prompt.
DROPOUT = TextDropout(encoder=0.12, caption=0.1)
# The paper's logit-normal (0, 1), moved towards noise, where the number and places of objects are decided.
DENSITY = LogitNormal(mean=0.6)
CONTROL_LAYERS = 2  # of the transformer's 6: a third of its time is added to a step


def averages(trainer: Trainer) -> EMA:
    """The averages that a stage trained with."""
    assert trainer.ema is not None
    return trainer.ema


def pictures(rng: np.random.Generator, batch: int) -> np.ndarray:
    """``batch`` rendered training scenes, uint8 [B, H, W, 3]."""
    return render_batch([sample_scene(rng) for _ in range(batch)])


def run_vae(output: str, steps: int | None = None) -> None:
    """Stage 1: the autoencoder, first with equal weight on all pixels, then with more on edges."""
    vae = AutoencoderKL(**VAE)
    pass_through(vae)
    common: dict[str, Any] = dict(
        learning_rate=7e-4,  # high: the network is small
        warmup_steps=100,
        betas=(0.9, 0.98),
        weight_decay=1e-4,
        ema_decay=0.995,  # over the last 200 steps: short, since a run is short
        save_every=250,
    )
    kl_weight = 0.01  # larger makes latents smoother and easier to generate, and pictures softer
    task = AutoencoderTask(vae, pictures, batch=8, kl_weight=kl_weight)
    trainer = Trainer(task, os.path.join(output, "vae"), TrainingOptions(max_steps=3200, **common)).run(steps)
    averages(trainer).copy_to_parameters()
    # Small shapes are mostly edges, which the weight sharpens; with the noise the decoder learns to tolerate the
    # transformer's errors.
    task = AutoencoderTask(vae, pictures, batch=8, kl_weight=kl_weight, edge_weight=5.0, latent_noise=0.05)
    options = TrainingOptions(max_steps=3000, seed=1, **common)
    trainer = Trainer(task, os.path.join(output, "vae_edges"), options).run(steps)
    with averages(trainer).applied():
        mean, std = latent_statistics(vae, pictures)
        vae.register_to_config(shift_factor=round(mean, 4), scaling_factor=round(1 / std, 4))
        vae.save_pretrained(os.path.join(output, "checkpoint", "vae"))


def pass_through(vae: AutoencoderKL, log_variance: float = -6.0) -> None:
    """Initial weights from which so small an autoencoder learns in minutes.

    Convolutions between stages start close to passing colours on (downsampling to their average), residual branches
    start small, and latents start with little noise. From random weights the group norms hide a flat picture's colour
    for thousands of steps.
    """
    for name, weight in vae.named_parameters():
        if weight.ndim != 4:
            continue
        if name.endswith("conv2.weight"):
            weight.set_value(weight * 0.1)
        elif any(part in name for part in ("samplers", "conv_shortcut", "conv_in")):
            out, into, side, _ = weight.shape
            value = 0.3 * weight.numpy()
            window = slice(0, 2) if "downsamplers" in name else slice(side // 2, side // 2 + 1)
            for channel in range(max(out, into)):
                taps = value[channel % out, channel % into, window, window]
                taps += 1 / taps.size
            weight.set_value(value)
    bias = vae.encoder.conv_out.bias
    channels = bias.shape[0] // 2
    bias.set_value(paddle.concat([bias[:channels], paddle.full([channels], log_variance)]))


def run_text(output: str, steps: int | None = None) -> None:
    """Stage 2: tokenizers, the two CLIP towers and T5."""
    texts = captions(20000)
    tokenizer, tokenizer_2 = train_clip_tokenizers(texts)
    tokenizer_3 = train_t5_tokenizer(texts)
    ids: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=MAX_LENGTH,
    )
    text_encoder = CLIPTextModelWithProjection(**CLIP_L, **ids, pad_token_id=tokenizer.eos_token_id)
    text_encoder_2 = CLIPTextModelWithProjection(**CLIP_G, **ids, pad_token_id=0)
    text_encoder_3 = T5EncoderModel(**T5, vocab_size=len(tokenizer_3))
    task = CaptionReadingTask([(text_encoder, tokenizer), (text_encoder_2, tokenizer_2)], text_encoder_3, tokenizer_3)
    options = TrainingOptions(max_steps=2000, learning_rate=1.5e-3, ema_decay=0.998)
    trainer = Trainer(task, os.path.join(output, "text"), options)
    trainer.run(steps)
    with averages(trainer).applied():
        parts = (text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_encoder_3, tokenizer_3)
        for name, part in zip(TOWERS, parts):
            part.save_pretrained(os.path.join(output, "checkpoint", name))


def run_latents(output: str, steps: int | None = None) -> None:
    """Between stages 2 and 3: encodes the pictures for the transformer."""
    vae = AutoencoderKL.from_pretrained(os.path.join(output, "checkpoint"), subfolder="vae")
    encode_scenes(vae, os.path.join(output, "latents"), SCENES)


def run_transformer(output: str, steps: int | None = None) -> None:
    """Stage 3: the MM-DiT, with rectified flow and logit-normal timesteps."""
    encoders = load_encoders(os.path.join(output, "checkpoint"))
    transformer = SD3Transformer2DModel(**TRANSFORMER)
    zero_modulation(transformer)
    task = TextToImageTask(
        transformer,
        EncodedTexts(encoders, DROPOUT),
        LatentScenes(os.path.join(output, "latents"), encoders, batch=64),
        density=DENSITY,
    )
    options = TrainingOptions(
        max_steps=52000,  # 3 million pictures
        learning_rate=1e-3,  # ten times SD3's: the network is small
        warmup_steps=300,  # modulation starts at zero, which large first steps would disturb
        ema_decay=0.9995,  # over the last 2000 steps
    )
    trainer = Trainer(task, os.path.join(output, "transformer"), options)
    # Operands in bfloat16, sums in float32: faster where the CPU can.
    with float32_matmul_precision("medium"):
        trainer.run(steps)
    with averages(trainer).applied():
        transformer.save_pretrained(os.path.join(output, "checkpoint", "transformer"))


def run_controlnet(output: str, steps: int | None = None) -> None:
    """Beside the stages: a ControlNet for the bundled model, controlled by silhouettes; OUTPUT/shapes-silhouette."""
    shapes = BUNDLED["shapes"]
    encoders = load_encoders(shapes)
    vae = AutoencoderKL.from_pretrained(shapes, subfolder="vae")
    transformer = SD3Transformer2DModel.from_pretrained(shapes, subfolder="transformer")
    latents, controls = (os.path.join(output, "controlnet_" + name) for name in ("latents", "silhouettes"))
    for directory, draw in ((latents, render_batch), (controls, silhouettes)):
        encode_scenes(vae, directory, CONTROLLED_SCENES, draw=draw)
    controlnet = SD3ControlNetModel.from_transformer(transformer, num_layers=CONTROL_LAYERS)
    task = ControlNetTask(
        controlnet,
        transformer,
        EncodedTexts(encoders, DROPOUT),
        LatentScenes(latents, encoders, batch=64, controls=controls),
        density=DENSITY,
    )
    options = TrainingOptions(
        max_steps=3000,  # 15 to 25 minutes on two cores
        learning_rate=1e-3,
        warmup_steps=100,
        ema_decay=0.998,  # over the last 500 steps
        save_every=250,
    )
    trainer = Trainer(task, os.path.join(output, "controlnet"), options)
    with float32_matmul_precision("medium"):
        trainer.run(steps)
    averages(trainer).copy_to_parameters()
    controlnet.to(dtype="float16")
    controlnet.save_pretrained(os.path.join(output, "shapes-silhouette"))


def load_encoders(checkpoint: str) -> TextEncoders:
    """The trained towers and tokenizers."""
    return TextEncoders(
        **{name: kind.from_pretrained(checkpoint, subfolder=name) for name, kind in TOWERS.items()},
        joint_attention_dim=TRANSFORMER["joint_attention_dim"],
        pooled_projection_dim=TRANSFORMER["pooled_projection_dim"],
        dtype="float32",
        clip_max_length=MAX_LENGTH,
    )


def zero_modulation(transformer: SD3Transformer2DModel) -> None:
    """adaLN-Zero: every block starts as the identity and the output as zero (Peebles and Xie, 2023)."""
    for name, parameter in transformer.named_parameters():
        if ".norm1" in name or "norm_out" in name or "proj_out" in name:
            parameter.set_value(paddle.zeros_like(parameter))


def run_pack(output: str, steps: int | None = None) -> None:
    """Last stage: the pipeline in half precision, as it is shipped; OUTPUT/shapes."""
    checkpoint = os.path.join(output, "checkpoint")
    encoders = load_encoders(checkpoint)
    parts = {name: getattr(encoders, name) for name in TOWERS}
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(checkpoint, subfolder="transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=AutoencoderKL.from_pretrained(checkpoint, subfolder="vae"),
        **parts,
    )
    pipe.to(dtype="float16")
    pipe.call_defaults = {"guidance_scale": GUIDANCE_SCALE}
    pipe.save_pretrained(os.path.join(output, "shapes"))
