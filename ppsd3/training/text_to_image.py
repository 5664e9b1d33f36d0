"""Training task of the transformer: a flow from data to noise, given text (paper, sections 2, 3 and 5.1)."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

import numpy as np
import paddle
from paddle import nn

from ..models import SD3Transformer2DModel
from ..pipelines.stable_diffusion_3.prompt_encoding import TextCondition
from ..utils.checking import checks_arguments
from .flow_matching import Objective, loss_weight, scaled
from .shifts import SizeShift
from .texts import Texts
from .timestep_sampling import Density, FloatArray, Indexed, LogitNormal


@dataclasses.dataclass
class Batch:
    """Latents and captions of one step.

    Attributes:
        latents: [B, C, H, W], shifted and scaled.
        clip_length, t5_length: token lengths to pad to; pipelines pad to 77 and 256.
        controls: for a ControlNet, latents [B, C', H, W] of the control images.
        weights: [B] of the rows' losses; None for 1.
        image_embeds: for an IP-adapter, features [B, T, E] of pictures.
    """

    latents: np.ndarray
    prompts: list[str]
    clip_length: int = 77
    t5_length: int = 256
    controls: np.ndarray | None = None
    weights: np.ndarray | None = None
    image_embeds: np.ndarray | None = None


Batches = Callable[[np.random.Generator, int], Batch]


class TextToImageTask:
    """Flow matching on batches of latents and captions.

    Args:
        transformer: trained in place.
        texts: turns captions into conditions, e.g. :class:`ppsd3.training.texts.EncodedTexts`.
        batches: ``batches(rng, number)`` -> :class:`Batch`; ``number`` counts the batches of a run.
        density: law of the times, in which a larger t is more noise. Shift it for large pictures,
            ``LogitNormal().shifted(3.0)``: a model that is sampled at a scheduler's shift wants it in training too.
        objective: the trajectory, and what the network predicts. Default: a rectified flow's velocity. To sample with
            another one see :class:`ppsd3.training.objective_transformer.ObjectiveTransformer2DModel`.
        weight: name of the loss weight, see :func:`ppsd3.training.flow_matching.loss_weight`.
        stratified: spread the times of a batch evenly over their law.
        size_shift: shifts ``density`` in addition, by the size of a batch's pictures.

    Attributes:
        layers: what is trained, by name; more networks may be added, e.g. text encoders.
        settings: what else a resumed run must share, e.g. of the batches.

    Raises:
        InputError: ``weight`` is unknown.
    """

    @checks_arguments
    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        texts: Texts,
        batches: Batches,
        density: Density | Indexed = LogitNormal(),
        objective: Objective = Objective(),
        weight: str = "none",
        stratified: bool = False,
        size_shift: SizeShift | None = None,
    ) -> None:
        self.transformer: SD3Transformer2DModel = transformer
        self.texts: Texts = texts
        self.batches: Batches = batches
        self.density: Density | Indexed = density
        self.objective: Objective = objective
        self.weight: str = weight
        self.stratified: bool = stratified
        self.size_shift: SizeShift | None = size_shift
        self.layers: dict[str, nn.Layer] = {"transformer": transformer}
        self.settings: dict[str, Any] = {}
        loss_weight(weight, 0.5)

    @property
    def configuration(self) -> dict[str, Any]:
        """What a resumed run must share."""
        names = ("density", "objective", "weight", "stratified", "size_shift")
        return {**self.settings, **self.texts.configuration, **{name: repr(getattr(self, name)) for name in names}}

    def loss(self, rng: np.random.Generator, batch: int) -> tuple[paddle.Tensor, dict[str, Any]]:
        """Weighted mean squared error of the prediction over one batch, and the errors by their times."""
        read = self.batches(rng, batch)
        noise = paddle.to_tensor(rng.standard_normal(read.latents.shape, dtype=np.float32))
        t = self.density_for(read).sample(rng, len(read.prompts), self.stratified)
        condition = self.texts.condition(read.prompts, rng, read.clip_length, read.t5_length)
        errors = self.errors(read, noise, t, condition)
        weights = loss_weight(self.weight, t) * (1.0 if read.weights is None else read.weights)
        return (errors * paddle.to_tensor(weights.astype(np.float32))).mean(), {"t": t, "errors": errors.numpy()}

    def density_for(self, batch: Batch) -> Density | Indexed:
        """The law of the times of a batch's pictures."""
        if self.size_shift is None:
            return self.density
        height, width = batch.latents.shape[2:]
        return self.density.shifted(self.size_shift(height * width // self.transformer.config.patch_size**2))

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
