"""Training task of the transformer: the velocity of a rectified flow, given text (paper, sections 2, 3 and 5.1)."""

import dataclasses
from typing import Optional

import numpy as np
import paddle
import paddle.nn.functional as F

from ..pipelines.stable_diffusion_3.prompt_encoding import Request, TextCondition, encode_prompts
from .flow_matching import RectifiedFlow
from .timestep_sampling import sample_timesteps


@dataclasses.dataclass
class Batch:
    """Latents ``[B, C, H, W]`` (numpy, shifted and scaled), their captions, and the token lengths to pad to; for a
    ControlNet also ``controls``, the guiding latents [B, C', H, W]."""

    latents: np.ndarray
    prompts: list[str]
    clip_length: int
    t5_length: int
    controls: Optional[np.ndarray] = None


@dataclasses.dataclass
class TextDropout:
    """How often text is withheld.

    Attributes:
        encoder (float): chance that an encoder's output is replaced by zeros, for each encoder by itself. SD3
            uses 0.464, so that any subset of encoders works at inference (paper, section 5.1).
        caption (float): chance that the caption is replaced by "", which is what pipelines encode as the negative
            prompt.
    """

    encoder: float = 0.464
    caption: float = 0.0


class TextToImageTask:
    """Rectified flow matching on batches of latents and captions.

    Args:
        transformer (SD3Transformer2DModel): trained in place.
        encoders (TextEncoders): frozen towers and their tokenizers.
        batches (callable): ``batches(rng, step)`` -> :class:`Batch`.
        dropout (TextDropout): see there.
        density (dict): arguments of :func:`sample_timesteps`; default logit-normal (0, 1).
    """

    def __init__(self, transformer, encoders, batches, dropout=TextDropout(), density=None):
        self.transformer, self.encoders, self.batches = transformer, encoders, batches
        self.dropout, self.density = dropout, density or {}
        self.flow = RectifiedFlow()
        self.layers = {"transformer": transformer}

    def loss(self, rng, step):
        """Mean squared error of the velocity over one batch."""
        batch = self.batches(rng, step)
        size = len(batch.prompts)
        x0 = paddle.to_tensor(batch.latents)
        noise = paddle.to_tensor(rng.standard_normal(batch.latents.shape, dtype=np.float32))
        t = paddle.to_tensor(sample_timesteps(rng, size, **self.density))
        condition = self.condition(batch, rng)
        inputs = dict(
            hidden_states=self.flow.interpolate(x0, noise, t),
            encoder_hidden_states=condition.embeds,
            pooled_projections=condition.pooled,
            timestep=t * 1000,
            return_dict=False,
        )
        return F.mse_loss(self.velocity(inputs, batch), self.flow.target(x0, noise)), {"batch": float(size)}

    def velocity(self, inputs, batch):
        """The velocity [B, C, H, W] that is trained; ``inputs`` are arguments of the transformer."""
        return self.transformer(**inputs)[0]

    @paddle.no_grad()
    def condition(self, batch, rng):
        """The batch's text condition with some of it withheld."""
        empty = rng.random(len(batch.prompts)) < self.dropout.caption
        prompts = ["" if drop else prompt for prompt, drop in zip(batch.prompts, empty)]
        encoders = dataclasses.replace(self.encoders, clip_max_length=batch.clip_length)
        condition = encode_prompts(encoders, [Request(prompts, prompts, prompts)], batch.t5_length)[0]
        keep = (rng.random([len(prompts), 3]) >= self.dropout.encoder).astype(np.float32)
        return drop_encoders(condition, keep, self.encoders, batch.clip_length)


def drop_encoders(condition, keep, encoders, clip_length):
    """Zeros in the place of encoders' outputs, as the pipeline has them for an encoder that is absent.

    Args:
        condition (TextCondition): of B rows.
        keep (numpy.ndarray [B, 3]): 1 or 0 for CLIP-L, CLIP-G and T5.
        encoders (TextEncoders): for the widths.
        clip_length (int): CLIP tokens, which stand before T5's.
    """
    clips = (encoders.text_encoder.config, encoders.text_encoder_2.config)
    rest = encoders.joint_attention_dim - sum(c.hidden_size for c in clips)  # padding: zeros already
    columns = np.repeat(keep[:, [0, 1, 1]], [clips[0].hidden_size, clips[1].hidden_size, rest], axis=1)
    pooled = np.repeat(keep[:, :2], [c.projection_dim for c in clips], axis=1)
    clip, t5 = condition.embeds[:, :clip_length], condition.embeds[:, clip_length:]
    clip = clip * paddle.to_tensor(columns[:, None])
    t5 = t5 * paddle.to_tensor(keep[:, 2, None, None])
    return TextCondition(paddle.concat([clip, t5], axis=1), condition.pooled * paddle.to_tensor(pooled))
