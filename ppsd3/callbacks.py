"""Callbacks of a call (``callback_on_step_end=``) as objects that know which tensors they need; diffusers' names."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import paddle

from .configuration_utils import ConfigMixin, register_to_config
from .utils.errors import InputError

__path__: list[str] = []  # see utils/elsewhere.py


class PipelineCallback(ConfigMixin, abc.ABC):
    """Base of callbacks that act at one step; a subclass lists its ``tensor_inputs`` and has a ``callback_fn``.

    Args:
        cutoff_step_ratio: part of the steps, 0 to 1, after which it acts.
        cutoff_step_index: the step after which it acts, in place of the ratio.

    Raises:
        InputError: neither of the two, or an impossible one.
    """

    config_name = "callback_config.json"

    @register_to_config
    def __init__(self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None) -> None:
        if cutoff_step_index is None and (cutoff_step_ratio is None or not 0 <= cutoff_step_ratio <= 1):
            raise InputError(
                f"cutoff_step_ratio is {cutoff_step_ratio!r}; pass a number from 0 to 1, or a cutoff_step_index."
            )

    @property
    @abc.abstractmethod
    def tensor_inputs(self) -> list[str]:
        """Names of the tensors that it is called with."""

    @abc.abstractmethod
    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: paddle.Tensor, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """What a call does with the tensors after step ``step_index``; it returns those that take their place."""

    def is_cutoff(self, pipeline: Any, step_index: int) -> bool:
        """Whether ``step_index`` is the step after which it acts."""
        index, ratio = self.config.cutoff_step_index, self.config.cutoff_step_ratio
        return step_index == (int(pipeline.num_timesteps * ratio) if index is None else index)

    def __call__(
        self, pipeline: Any, step_index: int, timestep: paddle.Tensor, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        return self.callback_fn(pipeline, step_index, timestep, callback_kwargs)


class MultiPipelineCallbacks:
    """Several callbacks, one after the other.

    Args:
        callbacks: of :class:`PipelineCallback`.
    """

    def __init__(self, callbacks: Sequence[PipelineCallback]) -> None:
        self.callbacks = list(callbacks)

    @property
    def tensor_inputs(self) -> list[str]:
        """Names of the tensors that any of them is called with."""
        return list(dict.fromkeys(name for callback in self.callbacks for name in callback.tensor_inputs))

    def __call__(
        self, pipeline: Any, step_index: int, timestep: paddle.Tensor, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        for callback in self.callbacks:
            callback_kwargs = {**callback_kwargs, **callback(pipeline, step_index, timestep, callback_kwargs)}
        return callback_kwargs


class SD3CFGCutoffCallback(PipelineCallback):
    """Ends the guidance after a step: the other steps ask about the positive prompt alone, in half the time."""

    tensor_inputs = ["prompt_embeds", "pooled_prompt_embeds"]  # type: ignore[assignment]

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: paddle.Tensor, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        if not (self.is_cutoff(pipeline, step_index) and pipeline.do_classifier_free_guidance):
            return callback_kwargs
        pipeline._guidance_scale = 0.0
        halves = {name: callback_kwargs[name].chunk(2)[1] for name in self.tensor_inputs}
        return {**callback_kwargs, **halves}
