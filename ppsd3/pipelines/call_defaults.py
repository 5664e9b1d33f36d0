"""Defaults of the call that a checkpoint brings along: the steps and the guidance that its model draws best with.

``model_index.json`` keeps them as ``_call_defaults``. diffusers passes over what begins with ``_``, and draws with its
own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..utils.checking import fit, shown
from ..utils.errors import InputError

INDEX_ENTRY = "_call_defaults"


def checked_defaults(pipeline_class: Any, values: Any) -> dict[str, float]:
    """``values`` as ``call_defaults`` of the class. Raises an InputError about what is none."""
    declared = {argument.name: argument for argument in pipeline_class.call_arguments() if argument.of_checkpoint}
    for name in fit("call_defaults", values, Mapping[str, Any]):
        if name not in declared:
            raise InputError(f"`call_defaults` has {shown(name)}; it may have {' and '.join(declared)}.")
    return {name: declared[name].fit(value) for name, value in values.items()}


class CallDefaults:
    """Gives a pipeline ``call_defaults``; its class has ``call_arguments()``."""

    call_arguments: Any
    _call_defaults: Mapping[str, float] = {}

    @property
    def call_defaults(self) -> dict[str, float]:
        """``num_inference_steps`` and ``guidance_scale`` of calls that leave them out, where they are not the declared
        ones. Saved with the pipeline; may be set, e.g. ``pipe.call_defaults = {"guidance_scale": 3.0}``.

        Raises:
            InputError: on setting another argument, or a value that the call would refuse.
        """
        return dict(self._call_defaults)

    @call_defaults.setter
    def call_defaults(self, values: Mapping[str, float]) -> None:
        self._call_defaults = checked_defaults(type(self), values)

    def with_call_defaults(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """``call`` with the steps and the guidance that it leaves out, or has as None."""
        left = [each for each in self.call_arguments() if each.of_checkpoint and call.get(each.name) is None]
        return {**call, **{each.name: self._call_defaults.get(each.name, each.default) for each in left}}
