"""How the bundled model is made: its sizes, and the stages that `examples/train_shapes.py` runs in order.

Each `run_*` takes the run's directory, resumes what it finds there and returns when its stage is complete.
"""

import os

import paddle

from ..models import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from ..ops import float32_matmul_precision
from ..pipelines import StableDiffusion3Pipeline
from ..pipelines.stable_diffusion_3.prompt_encoding import TextEncoders
from ..schedulers import FlowMatchEulerDiscreteScheduler
from ..training.autoencoder import AutoencoderTask, latent_statistics
from ..training.controlnet import ControlNetTask
from ..training.text_to_image import TextDropout, TextToImageTask
from ..training.trainer import Trainer
from ..transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer
from ..utils.hub import BUNDLED
from .dataset import LatentScenes, encode_scenes
from .reading import CaptionReadingTask
from .rendering import silhouettes
from .vocabulary import MAX_LENGTH, captions, train_clip_tokenizers, train_t5_tokenizer
from .world import RESOLUTION, render_batch, sample_scene

VAE = dict(
    block_out_channels=(16, 32, 64, 64),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=4,  # 4 channels a group at the finest level: smaller groups normalise a shape's hue away
    sample_size=RESOLUTION,
    use_quant_conv=False,
    use_post_quant_conv=False,
)

CLIP_L = dict(
    hidden_size=64,
    intermediate_size=256,
    projection_dim=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    hidden_act="quick_gelu",
)
CLIP_G = dict(
    hidden_size=96,
    intermediate_size=384,
    projection_dim=96,
    num_hidden_layers=3,
    num_attention_heads=3,
    hidden_act="gelu",
)
T5 = dict(d_model=192, d_kv=32, d_ff=384, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0)
TRANSFORMER = dict(
    sample_size=RESOLUTION // 8,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=6,
    attention_head_dim=32,
    num_attention_heads=6,
    joint_attention_dim=T5["d_model"],
    caption_projection_dim=192,
    pooled_projection_dim=CLIP_L["projection_dim"] + CLIP_G["projection_dim"],
    pos_embed_max_size=8,
)
TOWERS = {
    "text_encoder": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer_2": CLIPTokenizer,
    "text_encoder_3": T5EncoderModel,
    "tokenizer_3": T5Tokenizer,
}
SHIFT = 1.0  # of the sampling schedule: 64 latent cells need no more time at high noise
SCENES = 65536  # encoded pictures the transformer learns from
CONTROLLED_SCENES = 16384  # and its ControlNet
CONTROL_LAYERS = 2


def pictures(rng, batch):
    """``batch`` rendered training scenes, uint8 [B, H, W, 3]."""
    return render_batch([sample_scene(rng) for _ in range(batch)])


def run_vae(output, steps=None):
    """Stage 1: the autoencoder, for all pixels alike and then with weight on edges; last its latents' statistics."""
    vae = AutoencoderKL(**VAE)
    pass_through(vae)
    common = dict(warmup_steps=100, betas=(0.9, 0.98), weight_decay=1e-4, ema_decay=0.995, save_every=250)
    task = AutoencoderTask(vae, pictures, batch=8, kl_weight=0.01)
    trainer = Trainer(task, os.path.join(output, "vae"), max_steps=3200, learning_rate=7e-4, **common).run(steps)
    trainer.ema.copy_to_parameters()
    task = AutoencoderTask(vae, pictures, batch=8, kl_weight=0.01, edge_weight=5.0, latent_noise=0.05)
    trainer = Trainer(
        task, os.path.join(output, "vae_edges"), max_steps=3000, learning_rate=7e-4, seed=1, **common
    ).run(steps)
    with trainer.ema.applied():
        mean, std = latent_statistics(vae, pictures)
        vae.register_to_config(shift_factor=round(mean, 4), scaling_factor=round(1 / std, 4))
        vae.save_pretrained(os.path.join(output, "checkpoint", "vae"))


def pass_through(vae, log_variance=-6.0):
    """Initial weights from which so small an autoencoder learns in minutes.

    Convolutions between stages start close to handing on the colours they see (downsampling to their average), residual
    branches start small, and latents start with little noise. From random weights the group norms hide a flat
    picture's colour for thousands of steps.
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


def run_text(output, steps=None):
    """Stage 2: tokenizers, the two CLIP towers and T5."""
    texts = captions(20000)
    tokenizers = dict(
        zip(("tokenizer", "tokenizer_2"), train_clip_tokenizers(texts)), tokenizer_3=train_t5_tokenizer(texts)
    )
    ids = dict(
        vocab_size=len(tokenizers["tokenizer"]),
        bos_token_id=tokenizers["tokenizer"].bos_token_id,
        eos_token_id=tokenizers["tokenizer"].eos_token_id,
        max_position_embeddings=MAX_LENGTH,
    )
    towers = {
        "text_encoder": CLIPTextModelWithProjection(**CLIP_L, **ids, pad_token_id=ids["eos_token_id"]),
        "text_encoder_2": CLIPTextModelWithProjection(**CLIP_G, **ids, pad_token_id=0),
        "text_encoder_3": T5EncoderModel(**T5, vocab_size=len(tokenizers["tokenizer_3"])),
    }
    clips = [(towers["text_encoder"], tokenizers["tokenizer"]), (towers["text_encoder_2"], tokenizers["tokenizer_2"])]
    task = CaptionReadingTask(clips, towers["text_encoder_3"], tokenizers["tokenizer_3"])
    trainer = Trainer(task, os.path.join(output, "text"), max_steps=2000, learning_rate=1.5e-3, ema_decay=0.998)
    trainer.run(steps)
    with trainer.ema.applied():
        for name, part in {**towers, **tokenizers}.items():
            part.save_pretrained(os.path.join(output, "checkpoint", name))


def run_latents(output, steps=None):
    """Between the stages: the pictures of the transformer's training, encoded once."""
    vae = AutoencoderKL.from_pretrained(os.path.join(output, "checkpoint"), subfolder="vae")
    encode_scenes(vae, os.path.join(output, "latents"), SCENES)


def run_transformer(output, steps=None):
    """Stage 3: the MM-DiT, with rectified flow and logit-normal timesteps."""
    encoders = load_encoders(os.path.join(output, "checkpoint"))
    transformer = SD3Transformer2DModel(**TRANSFORMER)
    zero_modulation(transformer)
    task = TextToImageTask(
        transformer,
        encoders,
        LatentScenes(os.path.join(output, "latents"), encoders, batch=64),
        dropout=TextDropout(encoder=0.12, caption=0.1),
        density=dict(logit_mean=0.6),  # how many, where and which is settled at high noise, and is what is hard here
    )
    trainer = Trainer(
        task,
        os.path.join(output, "transformer"),
        max_steps=52000,
        learning_rate=1e-3,
        warmup_steps=300,
        ema_decay=0.9995,
    )
    with float32_matmul_precision("medium"):
        trainer.run(steps)
    with trainer.ema.applied():
        transformer.save_pretrained(os.path.join(output, "checkpoint", "transformer"))


def run_controlnet(output, steps=None):
    """Beside the pipeline: a ControlNet for the bundled model that reads silhouettes; OUTPUT/shapes-silhouette."""
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
        encoders,
        LatentScenes(latents, encoders, batch=64, controls=controls),
        dropout=TextDropout(encoder=0.12, caption=0.1),
        density=dict(logit_mean=0.6),
    )
    trainer = Trainer(
        task,
        os.path.join(output, "controlnet"),
        max_steps=3000,
        learning_rate=1e-3,
        warmup_steps=100,
        ema_decay=0.998,
        save_every=250,
    )
    with float32_matmul_precision("medium"):
        trainer.run(steps)
    trainer.ema.copy_to_parameters()
    controlnet.to(dtype="float16")
    controlnet.save_pretrained(os.path.join(output, "shapes-silhouette"))


def load_encoders(checkpoint):
    """The trained towers and tokenizers as the pipeline's stages take them."""
    return TextEncoders(
        **{name: kind.from_pretrained(checkpoint, subfolder=name) for name, kind in TOWERS.items()},
        joint_attention_dim=TRANSFORMER["joint_attention_dim"],
        pooled_projection_dim=TRANSFORMER["pooled_projection_dim"],
        dtype="float32",
        clip_max_length=MAX_LENGTH,
    )


def zero_modulation(transformer):
    """adaLN-Zero: every block starts as the identity and the output as zero (Peebles and Xie, 2023)."""
    for name, parameter in transformer.named_parameters():
        if ".norm1" in name or "norm_out" in name or "proj_out" in name:
            parameter.set_value(paddle.zeros_like(parameter))


def run_pack(output, steps=None):
    """The whole pipeline in half precision, as it is shipped: OUTPUT/shapes."""
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
    pipe.save_pretrained(os.path.join(output, "shapes"))
