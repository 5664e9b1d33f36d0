"""The denoising loop, the only one of the package, and the schedule that it follows.

The loop knows no task and no feature: what differs between text-to-image, image-to-image, inpainting and control
comes in as the starting latents, the timesteps, the velocity model and ``after_step``. Progress bar, callbacks and
interruption belong to whoever drives the generator.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, Callable, Optional

import paddle

from ...models import SD3Transformer2DModel
from ...ops.shapes import cast
from ...utils.errors import InputError
from .arguments import CallArguments, Generator
from .guidance import Guidance, Moment, Query, perturbed_processors
from .prompt_encoding import TextCondition

Velocity = Callable[[paddle.Tensor, int, Query], paddle.Tensor]


@dataclasses.dataclass
class DenoisingState:
    """What changes from step to step; the driver may replace any field between two steps.

    Attributes:
        latents: [B, C, H, W].
        condition: as ``guidance.expand`` made it, ``guidance.copies * B`` rows.
        guidance: what makes queries of the condition, and one velocity of the answers.
    """

    latents: paddle.Tensor
    condition: TextCondition
    guidance: Guidance


class VelocityModel:
    """The transformer as a function of latents, step and one guidance query.

    Args:
        transformer: or a layer with its ``prepare`` and ``forward``.
        timesteps: [n] fp32 in [0, 1000], of the whole loop.
        joint_attention_kwargs: for the attention processors.
        extra_channels: () -> [B, c, H, W], what the transformer reads after the latents' channels.
        control: (latents, transformer's input, step, condition) -> residuals for its blocks, or None for none at this
            step.
    """

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        timesteps: paddle.Tensor,
        joint_attention_kwargs: Optional[dict[str, Any]] = None,
        extra_channels: Optional[Callable[[], paddle.Tensor]] = None,
        control: Optional[Callable[..., Optional[list[paddle.Tensor]]]] = None,
    ):
        self.transformer, self.timesteps = transformer, timesteps
        self.joint_attention_kwargs, self.extra_channels = joint_attention_kwargs, extra_channels
        self.control = control
        self._perturbed: dict[tuple[Any, ...], dict[str, Callable[..., Any]]] = {(): {}}  # processors by layers
        self._prepared = PreparedSteps(
            lambda given, steps: transformer.prepare(given.embeds, given.pooled, steps, given.image_embeds), timesteps
        )

    def __call__(self, latents, step, query, run_blocks=None):
        """latents [B, C, H, W] -> velocity [copies * B, C, H, W]; ``run_blocks`` goes to the transformer."""
        read = latents if self.extra_channels is None else paddle.concat([latents, self.extra_channels()], axis=1)
        residuals = None if self.control is None else self.control(latents, read, step, query.condition)
        return self.transformer(
            hidden_states=read,
            prepared=self._prepared(query.condition, step),
            block_controlnet_hidden_states=residuals,
            joint_attention_kwargs=self.joint_attention_kwargs,
            skip_layers=query.skip_layers,
            attn_processors=self._processors(query.perturbed_layers),
            run_blocks=run_blocks,
            return_dict=False,
        )[0]

    def _processors(self, layers):
        if layers not in self._perturbed:
            self._perturbed[layers] = perturbed_processors(self.transformer, layers)
        return self._perturbed[layers]


class PreparedSteps:
    """What a network prepares of a condition, for a window of steps at once; a condition that is replaced between two
    steps is prepared anew.

    Args:
        prepare: (condition, timesteps [t]) -> list of t.
        timesteps: [n] fp32, of the whole loop.
    """

    WINDOW_ROWS = 64  # condition rows times steps prepared at once: 110 MB for SD3-medium

    def __init__(self, prepare, timesteps):
        self.prepare, self.timesteps = prepare, timesteps
        self._windows = []  # (condition, first step, prepared steps), of the conditions in use

    def __call__(self, condition, step):
        for known, first, prepared in self._windows:
            if known is condition and first <= step < first + len(prepared):
                return prepared[step - first]
        length = max(1, self.WINDOW_ROWS // condition.embeds.shape[0])
        # Timesteps stay fp32 whatever the model's dtype: 987.38 has no fp16 neighbour near enough for the sinusoid.
        prepared = self.prepare(condition, self.timesteps[step : step + length])
        # a step asks about two conditions at most; windows of one that was replaced are not kept
        self._windows = [(condition, step, prepared), *(w for w in self._windows if w[0] is not condition)][:2]
        return prepared[0]


def keep_latents(latents, step):
    """The ``after_step`` of a task that leaves the latents as the scheduler made them."""
    return latents


def denoise(
    velocity: Velocity,
    scheduler: Any,
    timesteps: paddle.Tensor,
    state: DenoisingState,
    after_step: Callable[[paddle.Tensor, int], paddle.Tensor] = keep_latents,
    generator: Generator = None,
) -> Iterator[tuple[int, paddle.Tensor, DenoisingState]]:
    """Moves ``state.latents`` along the flow from ``timesteps[0]`` to the last, yielding after each step.

    Args:
        velocity: ``(latents, step, query) -> velocity``, e.g. a :class:`VelocityModel`.
        scheduler: has had ``set_timesteps`` called; gives ``step(velocity, t, latents, return_dict=False)``.
        timesteps: [n] fp32, descending.
        state: changed in place, and read anew at each step.
        after_step: ``(latents, step) -> latents``, e.g. inpainting's re-noising outside the mask.
        generator: source of a stochastic sampler's noise.

    Yields:
        ``(step, timestep, state)``.
    """
    memory: dict[int, dict[str, Any]] = {}
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for step, timestep in enumerate(timesteps):
        moment = Moment(step, len(timesteps), timestep, memory)
        queries = state.guidance.queries(state.condition, moment)
        # float32, since sums over a picture are beyond float16
        predictions = [cast(velocity(state.latents, step, query), paddle.float32) for query in queries]
        prediction = cast(state.guidance.combine(predictions, moment), state.latents.dtype)
        latents = scheduler.step(prediction, timestep, state.latents, return_dict=False, **draws)[0]
        state.latents = after_step(latents, step)
        yield step, timestep, state


def resolution_shift(image_seq_len, base_seq_len=256, max_seq_len=4096, base_shift=0.5, max_shift=1.16):
    """``mu`` of a dynamically shifted schedule: linear in the number of image tokens N, ``base_shift`` at
    ``base_seq_len`` and ``max_shift`` at ``max_seq_len`` (SD3 paper, section 5.3.2, as diffusers computes it)."""
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return image_seq_len * slope + (base_shift - slope * base_seq_len)


# Of a scheduler that says nothing of them; in the order of resolution_shift's arguments.
SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.16}


def prepare_timesteps(scheduler: Any, arguments: CallArguments, image_seq_len: int) -> paddle.Tensor:
    """Sets the scheduler's schedule and returns its timesteps [n].

    Args:
        scheduler: changed in place, so a call passes its own copy.
        arguments: of the call; ``num_inference_steps`` is n, unless ``sigmas`` (n noise levels before the shift) or
            ``timesteps`` are given. ``mu`` is the shift of a scheduler with ``use_dynamic_shifting``.
        image_seq_len: number of image tokens N, from which ``mu`` follows where it is None.

    Raises:
        InputError: ``sigmas`` or ``timesteps`` for a scheduler that takes none, or what the scheduler refuses, e.g.
            ``mu`` without use.
    """
    config = scheduler.config
    given = {name: getattr(arguments, name) for name in ("sigmas", "timesteps", "mu")}
    if given["mu"] is None and config.get("use_dynamic_shifting", False):
        given["mu"] = resolution_shift(image_seq_len, *(config.get(name, default) for name, default in SHIFTS.items()))
    given = {name: value for name, value in given.items() if value is not None}
    if not given.keys() - {"mu"}:
        given["num_inference_steps"] = arguments.num_inference_steps
    for name in given:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise InputError(
                f"{type(scheduler).__name__} takes no `{name}`; leave it out, or use FlowMatchEulerDiscreteScheduler."
            )
    scheduler.set_timesteps(**given)
    if hasattr(scheduler, "set_begin_index"):  # else the first step is looked up, and timesteps may repeat
        scheduler.set_begin_index(0)
    return scheduler.timesteps
