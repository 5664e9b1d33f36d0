"""Training task of the transformer: a flow from data to noise, given text (paper, sections 2, 3 and 5.1)."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

import numpy as np
import paddle
from paddle import nn

from ..models import SD3Transformer2DModel
from ..pipelines.stable_diffusion_3.prompt_encoding import Request, TextCondition, TextEncoders, encode_prompts
from ..utils.paddle_internals import no_grad
from .flow_matching import Objective, loss_weight, scaled
from .timestep_sampling import Density, FloatArray, Indexed, LogitNormal


@dataclasses.dataclass
class Batch:
    """Latents and captions of one step.

    Attributes:
        latents: [B, C, H, W], shifted and scaled.
        clip_length, t5_length: token lengths to pad to.
        controls: for a ControlNet, latents [B, C', H, W] of the control images.
    """

    latents: np.ndarray
    prompts: list[str]
    clip_length: int
    t5_length: int
    controls: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class TextDropout:
    """Probabilities of text dropout.

    Attributes:
        encoder: that an encoder's output is replaced by zeros, independently for each encoder. SD3 uses 0.464, so that
            any subset of encoders works at inference (paper, section 5.1).
        caption: that the caption is replaced by "", which pipelines encode as the negative prompt.
    """

    encoder: float = 0.464
    caption: float = 0.0


Batches = Callable[[np.random.Generator, int], Batch]


class TextToImageTask:
    """Flow matching on batches of latents and captions.

    Args:
        transformer: trained in place.
        encoders: frozen towers and their tokenizers.
        batches: ``batches(rng, number)`` -> :class:`Batch`; ``number`` counts the batches of a run.
        dropout: of text.
        density: law of the times, in which a larger t is more noise. Shift it for large pictures,
            ``LogitNormal().shifted(3.0)``: a model that is sampled at a scheduler's shift wants it in training too.
        objective: the trajectory, and what the network predicts. Default: a rectified flow's velocity. To sample with
            another one see :class:`ppsd3.training.objective_transformer.ObjectiveTransformer2DModel`.
        weight: name of the loss weight, see :func:`ppsd3.training.flow_matching.loss_weight`.
        stratified: spread the times of a batch evenly over their law.

    Raises:
        InputError: ``weight`` is unknown.
    """

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        encoders: TextEncoders,
        batches: Batches,
        dropout: TextDropout = TextDropout(),
        density: Density | Indexed = LogitNormal(),
        objective: Objective = Objective(),
        weight: str = "none",
        stratified: bool = False,
    ) -> None:
        self.transformer: SD3Transformer2DModel = transformer
        self.encoders: TextEncoders = encoders
        self.batches: Batches = batches
        self.dropout: TextDropout = dropout
        self.density: Density | Indexed = density
        self.objective: Objective = objective
        self.weight: str = weight
        self.stratified: bool = stratified
        self.layers: dict[str, nn.Layer] = {"transformer": transformer}
        loss_weight(weight, 0.5)

    @property
    def configuration(self) -> dict[str, Any]:
        """What a resumed run must share."""
        names = ("dropout", "density", "objective", "weight", "stratified")
        return {name: repr(getattr(self, name)) for name in names}

    def loss(self, rng: np.random.Generator, batch: int) -> tuple[paddle.Tensor, dict[str, Any]]:
        """Weighted mean squared error of the prediction over one batch, and the errors by their times."""
        read = self.batches(rng, batch)
        noise = paddle.to_tensor(rng.standard_normal(read.latents.shape, dtype=np.float32))
        t = self.density.sample(rng, len(read.prompts), self.stratified)
        errors = self.errors(read, noise, t, self.condition(read, rng))
        weights = loss_weight(self.weight, t).astype(np.float32)
        return (errors * paddle.to_tensor(weights)).mean(), {"t": t, "errors": errors.numpy()}

    def errors(self, batch: Batch, noise: paddle.Tensor, t: FloatArray, condition: TextCondition) -> paddle.Tensor:
        """Squared errors [B] of the prediction at ``t [B]``, means over a latent; ``noise [B, C, H, W]``."""
        x0, path = paddle.to_tensor(batch.latents), self.objective.trajectory
        z = path.interpolate(x0, noise, t)
        inputs = dict(
            hidden_states=scaled(path.input_scale(t), z),
            encoder_hidden_states=condition.embeds,
            pooled_projections=condition.pooled,
            timestep=paddle.to_tensor(path.timestep(t).astype(np.float32)),
            return_dict=False,
        )
        target = self.objective.target(x0, noise, t)
        return (self.predict(inputs, batch) - target).square().mean(axis=[1, 2, 3])

    def predict(self, inputs: dict[str, Any], batch: Batch) -> paddle.Tensor:
        """The network's prediction [B, C, H, W]; ``inputs`` are arguments of the transformer."""
        return self.transformer(**inputs)[0]

    @no_grad
    def condition(self, batch: Batch, rng: np.random.Generator) -> TextCondition:
        """The batch's text condition, with dropout."""
        empty = rng.random(len(batch.prompts)) < self.dropout.caption
        prompts = ["" if drop else prompt for prompt, drop in zip(batch.prompts, empty)]
        encoders = dataclasses.replace(self.encoders, clip_max_length=batch.clip_length)
        condition = encode_prompts(encoders, [Request(prompts, prompts, prompts)], batch.t5_length)[0]
        keep = (rng.random([len(prompts), 3]) >= self.dropout.encoder).astype(np.float32)
        return drop_encoders(condition, keep, self.encoders, batch.clip_length)


def drop_encoders(
    condition: TextCondition, keep: np.ndarray, encoders: TextEncoders, clip_length: int
) -> TextCondition:
    """Replaces encoders' outputs by zeros, as the pipeline does for an absent encoder.

    Args:
        condition: of B rows.
        keep [B, 3]: 1 or 0 for CLIP-L, CLIP-G and T5.
        encoders: for the widths.
        clip_length: number of CLIP tokens, which come before T5's.
    """
    assert encoders.text_encoder is not None and encoders.text_encoder_2 is not None
    clips = (encoders.text_encoder.config, encoders.text_encoder_2.config)
    rest = encoders.joint_attention_dim - sum(c.hidden_size for c in clips)  # padding: zeros already
    columns = np.repeat(keep[:, [0, 1, 1]], [clips[0].hidden_size, clips[1].hidden_size, rest], axis=1)
    pooled = np.repeat(keep[:, :2], [c.projection_dim for c in clips], axis=1)
    clip, t5 = condition.embeds[:, :clip_length], condition.embeds[:, clip_length:]
    clip = clip * paddle.to_tensor(columns[:, None])
    t5 = t5 * paddle.to_tensor(keep[:, 2, None, None])
    return TextCondition(paddle.concat([clip, t5], axis=1), condition.pooled * paddle.to_tensor(pooled))
