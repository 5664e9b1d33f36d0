"""Training task of the transformer: a flow from data to noise, given text (paper, sections 2, 3 and 5.1)."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any, Callable

import numpy as np
import paddle
from paddle import nn

from ..models import SD3Transformer2DModel
from ..pipelines.stable_diffusion_3.prompt_encoding import TextCondition
from ..utils.checking import checks_arguments
from ..utils.paddle_internals import no_grad
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
        priors: how many rows, the last ones, are there for prior preservation.
    """

    latents: np.ndarray
    prompts: list[str]
    clip_length: int = 77
    t5_length: int = 256
    controls: np.ndarray | None = None
    weights: np.ndarray | None = None
    image_embeds: np.ndarray | None = None
    priors: int = 0


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
        before: a context manager in which the networks are as they were before training. With it, priors are compared
            with what the network predicted then, not with their pictures.

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
        before: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.transformer: SD3Transformer2DModel = transformer
        self.texts: Texts = texts
        self.batches: Batches = batches
        self.density: Density | Indexed = density
        self.objective: Objective = objective
        self.weight: str = weight
        self.stratified: bool = stratified
        self.size_shift: SizeShift | None = size_shift
        self.before: Callable[[], contextlib.AbstractContextManager[Any]] | None = before
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
        kept = self._before_training(read, noise, t, copy.deepcopy(rng)) if self.before and read.priors else None
        errors = self.errors(read, noise, t, self._condition(read, rng), kept)
        weights = loss_weight(self.weight, t) * (1.0 if read.weights is None else read.weights)
        return (errors * paddle.to_tensor(weights.astype(np.float32))).mean(), {"t": t, "errors": errors.numpy()}

    def density_for(self, batch: Batch) -> Density | Indexed:
        """The law of the times of a batch's pictures."""
        if self.size_shift is None:
            return self.density
        height, width = batch.latents.shape[2:]
        return self.density.shifted(self.size_shift(height * width // self.transformer.config.patch_size**2))

    def errors(
        self,
        batch: Batch,
        noise: paddle.Tensor,
        t: FloatArray,
        condition: TextCondition,
        kept: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """Squared errors [B] of the prediction at ``t [B]``, means over a latent.

        Args:
            noise: [B, C, H, W].
            kept: [priors, C, H, W], what the last rows' predictions are compared with.
        """
        target = self.objective.target(paddle.to_tensor(batch.latents), noise, t)
        if kept is not None:
            target = paddle.concat([target[: -batch.priors], kept])
        prediction = self.predict(self._inputs(batch, noise, t, condition), batch)
        return (prediction - target).square().mean(axis=[1, 2, 3])

    def _inputs(self, batch, noise, t, condition):
        path = self.objective.trajectory
        return dict(
            hidden_states=scaled(path.input_scale(t), path.interpolate(paddle.to_tensor(batch.latents), noise, t)),
            encoder_hidden_states=condition.embeds,
            pooled_projections=condition.pooled,
            timestep=paddle.to_tensor(path.timestep(t).astype(np.float32)),
            return_dict=False,
        )

    def _condition(self, batch, rng):
        return self.texts.condition(batch.prompts, rng, batch.clip_length, batch.t5_length)

    @no_grad
    def _before_training(self, batch, noise, t, rng):
        """The predictions for the priors before training, at the same times, with the same dropout (``rng``)."""
        assert self.before is not None
        with self.before():
            inputs = self._inputs(batch, noise, t, self._condition(batch, rng))
            rows = {name: x[-batch.priors :] if isinstance(x, paddle.Tensor) else x for name, x in inputs.items()}
            return self.predict(rows, batch)

    def predict(self, inputs: dict[str, Any], batch: Batch) -> paddle.Tensor:
        """The network's prediction [B, C, H, W]; ``inputs`` are arguments of the transformer."""
        return self.transformer(**inputs)[0]
