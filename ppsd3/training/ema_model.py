"""``EMAModel``: moving averages of parameters, under the names that diffusers' scripts call.

The trainer's own are in :mod:`ppsd3.training.ema`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import paddle

from ..modeling_utils import ModelMixin
from ..utils.errors import InputError
from ..utils.files import atomic_write
from ..utils.json_files import read_json
from ..utils.paddle_internals import no_grad
from ..utils.types import PathLike

_STATE = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
_FILE = "ema.json"


class EMAModel:
    """Moving averages of parameters.

    The averages are float32, whatever the parameters are: a bfloat16 would not move by ``1 - decay``.

    Args:
        parameters: of a network, in the order that every method is given them in.
        decay: most of an average that is kept at a step.
        min_decay: least of it.
        update_after_step: steps at which the averages follow the parameters entirely.
        use_ema_warmup: the decay is ``1 - (1 + step / inv_gamma) ** -power``, in the place of
            ``(1 + step) / (10 + step)``, up to ``decay``.
        inv_gamma, power: of the warm-up.
        foreach: changes nothing; it chooses between two ways to the same numbers.
        model_cls, model_config: class and configuration of the network, for :meth:`save_pretrained`.
    """

    def __init__(
        self,
        parameters: Iterable[paddle.Tensor],
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        foreach: bool = False,
        model_cls: type[ModelMixin] | None = None,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.shadow_params: list[paddle.Tensor] = [p.detach().astype("float32").clone() for p in parameters]
        self.temp_stored_params: list[paddle.Tensor] | None = None
        self.decay: float = decay
        self.min_decay: float = min_decay
        self.update_after_step: int = update_after_step
        self.use_ema_warmup: bool = use_ema_warmup
        self.inv_gamma: float = inv_gamma
        self.power: float = power
        self.optimization_step: int = 0
        self.cur_decay_value: float | None = None
        self.model_cls: type[ModelMixin] | None = model_cls
        self.model_config: Mapping[str, Any] | None = model_config

    def get_decay(self, optimization_step: int) -> float:
        """What is kept of the averages at this step."""
        step = max(0, optimization_step - self.update_after_step - 1)
        if step == 0:
            return 0.0
        growing = 1 - (1 + step / self.inv_gamma) ** -self.power if self.use_ema_warmup else (1 + step) / (10 + step)
        return max(min(growing, self.decay), self.min_decay)

    @no_grad
    def step(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Moves the averages towards the parameters; call it after each step of the optimizer."""
        tensors = self._matching(parameters)
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        for average, parameter in zip(self.shadow_params, tensors):
            if parameter.stop_gradient:
                average.set_value(parameter.astype("float32"))
            else:
                average.subtract_((average - parameter.astype("float32")) * (1 - self.cur_decay_value))

    @no_grad
    def copy_to(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Sets the parameters to their averages."""
        for average, parameter in zip(self.shadow_params, self._matching(parameters)):
            parameter.set_value(average.astype(parameter.dtype))

    @no_grad
    def store(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Keeps the parameters for :meth:`restore`."""
        self.temp_stored_params = [parameter.detach().clone() for parameter in self._matching(parameters)]

    @no_grad
    def restore(self, parameters: Iterable[paddle.Tensor]) -> None:
        """Sets the parameters to what :meth:`store` kept.

        Raises:
            InputError: nothing is kept.
        """
        if self.temp_stored_params is None:
            raise InputError("restore() has nothing to restore. Call store() before copy_to().")
        for kept, parameter in zip(self.temp_stored_params, self._matching(parameters)):
            parameter.set_value(kept)
        self.temp_stored_params = None

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes: settings, steps and averages."""
        return {**{name: getattr(self, name) for name in _STATE}, "shadow_params": list(self.shadow_params)}

    @no_grad
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Raises:
            InputError: it lacks a setting, or its averages are of another network.
        """
        missing = [name for name in (*_STATE, "shadow_params") if name not in state_dict]
        if missing:
            raise InputError(f"state_dict has no {missing[0]!r}; pass what state_dict() of an EMAModel gave.")
        averages = self._matching(state_dict["shadow_params"], "state_dict['shadow_params']")
        for name in _STATE:
            setattr(self, name, state_dict[name])
        for average, loaded in zip(self.shadow_params, averages):
            average.set_value(loaded.astype("float32"))

    def save_pretrained(self, path: PathLike) -> None:
        """Writes the averages as a network, and the settings of this object beside it.

        Raises:
            InputError: ``model_cls`` or ``model_config`` was not given.
        """
        if self.model_cls is None or self.model_config is None:
            raise InputError("save_pretrained() needs model_cls and model_config, given when the EMAModel was made.")
        model = self.model_cls.from_config(self.model_config)
        self.copy_to(model.parameters())
        model.save_pretrained(path)
        with atomic_write(os.path.join(path, _FILE)) as file:
            file.write(json.dumps({name: getattr(self, name) for name in _STATE}, indent=2).encode())

    @classmethod
    def from_pretrained(cls, path: PathLike, model_cls: type[ModelMixin], foreach: bool = False) -> EMAModel:
        """What :meth:`save_pretrained` wrote.

        Raises:
            CheckpointNotFoundError, ConfigError: it is not there, or damaged.
        """
        model = model_cls.from_pretrained(path)
        averages = cls(model.parameters(), model_cls=model_cls, model_config=model.config, foreach=foreach)
        state = read_json(os.path.join(path, _FILE), "the settings of an EMAModel")
        averages.load_state_dict({**state, "shadow_params": averages.shadow_params})
        return averages

    def _matching(self, tensors, name="parameters"):
        tensors = list(tensors)
        if [list(t.shape) for t in tensors] != [list(t.shape) for t in self.shadow_params]:
            raise InputError(
                f"{name} are {len(tensors)} tensors of other shapes than the {len(self.shadow_params)} averages. Pass "
                "those of the same network, in the same order."
            )
        return tensors
