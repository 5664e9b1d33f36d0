"""Which calls of a pipeline are running, and what a pipeline tells and changes of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import paddle

from ...models.ip_adapter import IPAdapter, held_scales
from ...ops.settings import kept as kept_settings
from ...utils.device import tune_thread
from ...utils.threads import working_with
from .arguments import CallArguments
from .call import Call
from .pipeline_output import StableDiffusion3PipelineOutput
from .tasks import Task


class PresentCall:
    """The pipeline's attributes that belong to a call: those of the call that the thread is in, or of the last one.

    A callback finds its own call in them, whatever other threads draw with the same pipeline.
    """

    _calls: dict[int, list[Call]]  # those of each thread that is in one; a callback may draw too, then the last counts
    _last_call: Call | None = None
    _scheduler: Any

    if TYPE_CHECKING:

        @property
        def ip_adapter(self) -> IPAdapter | None: ...

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler; inside a call, as for its callbacks, the call's own copy with its schedule."""
        calls = self._calls.get(threading.get_ident())
        return calls[-1].scheduler if calls else self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def _draw(self, task: Task, arguments: CallArguments) -> StableDiffusion3PipelineOutput:
        """The pictures of one call; a tuple of its ``images`` without ``return_dict``."""
        tune_thread()
        call = self._last_call = Call(self, task, arguments)  # type: ignore[arg-type]
        calls = self._calls.setdefault(threading.get_ident(), [])
        calls.append(call)
        try:
            with paddle.no_grad(), working_with(self), kept_settings(), held_scales(self.ip_adapter):
                return call.run()
        finally:
            calls.pop()

    @property
    def _present_call(self) -> Call | None:
        """The call that this thread is in, or else the last one of any."""
        return (self._calls.get(threading.get_ident()) or [self._last_call])[-1]

    def _calls_to_change(self) -> list[Call]:
        """The call that this thread is in, or else all that are running: a callback changes its own call, a program's
        other thread, as a button to cancel, all of them."""
        own = self._calls.get(threading.get_ident())
        return own[-1:] if own else [calls[-1] for calls in list(self._calls.values()) if calls]

    @property
    def _guidance_scale(self) -> float:
        return 7.0 if self._present_call is None else self._present_call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float):
        for call in self._calls_to_change():
            call.guidance_scale = scale

    @property
    def _interrupt(self) -> bool:
        return self._present_call is not None and self._present_call.interrupted

    @_interrupt.setter
    def _interrupt(self, interrupt: bool):
        for call in self._calls_to_change():
            call.interrupted = interrupt

    @property
    def guidance_scale(self) -> float:
        """Weight of the guidance in the present or last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the transformer is asked about the negative prompt too."""
        call = self._present_call
        return self._guidance_scale > 1 if call is None else call.guidance.copies > 1

    @property
    def skip_guidance_layers(self) -> list[int] | None:
        """Layers of the skip-layer guidance in the present or last call."""
        return self._argument("skip_guidance_layers")

    @property
    def clip_skip(self) -> int | None:
        """``clip_skip`` of the present or last call."""
        return self._argument("clip_skip")

    @property
    def joint_attention_kwargs(self) -> dict[str, Any] | None:
        """``joint_attention_kwargs`` of the present or last call."""
        return self._argument("joint_attention_kwargs")

    @property
    def lora_scale(self) -> float:
        """The factor of the weight of LoRA layers in the present or last call."""
        return (self.joint_attention_kwargs or {}).get("scale", 1.0)

    @property
    def num_timesteps(self) -> int | None:
        """Number of steps of the present or last call."""
        return None if self._present_call is None else self._present_call.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the present call stops after this step; a callback sets ``pipeline._interrupt``."""
        return self._interrupt

    def _argument(self, name):
        return None if self._present_call is None else getattr(self._present_call.arguments, name, None)
