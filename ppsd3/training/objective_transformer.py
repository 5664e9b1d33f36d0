"""A transformer that was trained with any objective, sampled by the loop of rectified flows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from ..models import SD3Transformer2DModel
from ..models.transformer_sd3 import PreparedCondition, Transformer2DModelOutput
from ..utils.errors import ConfigError, InputError
from .flow_matching import EDM, Cosine, LDMLinear, Objective, RectifiedFlow, scaled
from .timestep_sampling import FloatArray

TRAJECTORIES = {kind.__name__: kind for kind in (RectifiedFlow, EDM, Cosine, LDMLinear)}

# Of pure noise a prediction of the noise says nothing about the data: a network that predicts it is asked here.
NOISIEST_EPSILON = 0.999


@dataclasses.dataclass
class LeveledCondition(PreparedCondition):
    """A prepared condition that knows the share of noise ``sigma`` of its step."""

    level: float = 0.0


class ObjectiveTransformer2DModel(SD3Transformer2DModel):
    """An SD3 transformer whose own prediction is turned into a rectified flow's velocity.

    At share of noise ``s``, the latents ``(1 - s) x0 + s noise`` of the sampling loop are, but for their scale, the
    ``alpha x0 + sigma noise`` of the trajectory at the time of the same SNR. There the network is asked, and its answer
    means an x0, whose velocity is ``(latents - x0) / s``. A step of Euler's method along it is a step of DDIM, of EDM's
    Euler and of diffusers' ``EulerDiscreteScheduler`` between the same noise levels, and every scheduler, guidance and
    cache of the pipelines works. Levels beyond the trajectory's noisiest are asked there, at its scale.

    Args:
        trajectory: "RectifiedFlow", "EDM", "Cosine" or "LDMLinear".
        prediction: see :class:`ppsd3.training.flow_matching.Objective`.
        trajectory_options: arguments of the trajectory, e.g. ``{"mean": -1.2}`` of EDM.
        **transformer: the arguments of :class:`ppsd3.SD3Transformer2DModel`.

    Raises:
        ConfigError: an unknown trajectory, or one without such options.
        InputError: an unknown prediction.
    """

    objective: Objective

    def __init__(
        self,
        trajectory: str = "RectifiedFlow",
        prediction: str = "velocity",
        trajectory_options: Mapping[str, float] | None = None,
        **transformer: Any,
    ) -> None:
        super().__init__(**transformer)
        if self.config.in_channels != self.out_channels:
            raise ConfigError(
                f"in_channels is {self.config.in_channels} and out_channels {self.out_channels}: extra channels have "
                "no place on a trajectory. Use SD3Transformer2DModel."
            )
        self.objective = Objective(_trajectory(trajectory, trajectory_options or {}), prediction)
        self.register_to_config(
            trajectory=trajectory, prediction=prediction, trajectory_options=dict(trajectory_options or {})
        )

    @classmethod
    def _known_keys(cls) -> list[str]:
        return ["trajectory", "prediction", "trajectory_options", *SD3Transformer2DModel._known_keys()]

    @classmethod
    def from_transformer(
        cls,
        transformer: SD3Transformer2DModel,
        trajectory: str,
        prediction: str,
        trajectory_options: Mapping[str, float] | None = None,
    ) -> ObjectiveTransformer2DModel:
        """A network that shares the weights of ``transformer``, which was trained with an objective."""
        model = cls(trajectory, prediction, trajectory_options, **transformer.config)
        for name, layer in transformer.named_children():
            setattr(model, name, layer)
        model.eval()
        return model

    def prepare(
        self,
        encoder_hidden_states: paddle.Tensor,
        pooled_projections: paddle.Tensor,
        timesteps: paddle.Tensor,
        ip_adapter_image_embeds: paddle.Tensor | None = None,
    ) -> list[PreparedCondition]:
        """As :meth:`SD3Transformer2DModel.prepare`; ``timesteps [T]`` are those of the sampling loop, 0 to 1000."""
        levels = _levels(timesteps)
        told = paddle.to_tensor(self.objective.trajectory.timestep(self._time(levels)).astype(np.float32))
        steps = super().prepare(encoder_hidden_states, pooled_projections, told, ip_adapter_image_embeds)
        return [LeveledCondition(**vars(step), level=float(level)) for step, level in zip(steps, levels)]

    def forward(
        self,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
        pooled_projections: paddle.Tensor | None = None,
        timestep: paddle.Tensor | None = None,
        block_controlnet_hidden_states: Any = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        prepared: PreparedCondition | None = None,
        **options: Any,
    ) -> Transformer2DModelOutput | tuple[paddle.Tensor]:
        """The velocity ``noise - x0`` at ``hidden_states``; arguments as of :meth:`SD3Transformer2DModel.forward`.

        Raises:
            InputError: there are residuals of a ControlNet, which reads latents of another scale.
        """
        if block_controlnet_hidden_states is not None:
            raise InputError("controlnet: it reads a rectified flow's latents. Use a transformer trained with those.")
        if isinstance(prepared, LeveledCondition):
            levels = np.asarray([prepared.level])
        elif timestep is not None:
            levels = _levels(timestep)
        else:
            raise InputError("timestep is missing, or `prepared` of this model's prepare().")
        t = self._time(levels)
        trajectory = self.objective.trajectory
        scale = np.hypot(trajectory.alpha(t), trajectory.sigma(t)) / np.hypot(1 - levels, levels)
        z = scaled(scale, hidden_states)
        told = None if timestep is None else paddle.to_tensor(trajectory.timestep(t).astype(np.float32))
        prediction = super().forward(
            hidden_states=scaled(trajectory.input_scale(t), z),
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=told,
            joint_attention_kwargs=joint_attention_kwargs,
            return_dict=False,
            prepared=prepared,
            **options,
        )[0]
        copies = prediction.shape[0] // z.shape[0]
        x0, _ = self.objective.data_and_noise(prediction, paddle.concat([z] * copies), np.tile(t, copies))
        velocity = scaled(1 / np.tile(levels, copies), paddle.concat([hidden_states] * copies) - x0)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _time(self, levels: FloatArray) -> FloatArray:
        """Times of the trajectory with the SNR of shares of noise ``levels``."""
        if self.objective.prediction == "epsilon":
            levels = np.minimum(levels, NOISIEST_EPSILON)
        with np.errstate(divide="ignore"):  # pure noise has a log-SNR of -infinity
            return self.objective.trajectory.time(2 * (np.log1p(-levels) - np.log(levels)))


def _trajectory(name, options):
    if name not in TRAJECTORIES:
        raise ConfigError(f"trajectory is {name!r}; it must be one of {', '.join(TRAJECTORIES)}.")
    try:
        return TRAJECTORIES[name](**options)
    except TypeError as error:
        raise ConfigError(f"trajectory_options of {name} are {options!r}: {error}.") from error


def _levels(timesteps):
    """Shares of noise, float64, of the loop's timesteps; no smaller than what a float32 can divide by."""
    return np.maximum(timesteps.astype("float64").numpy() / 1000, 1e-6)
