"""One call of a pipeline: from checked arguments to pictures, in five stages."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import paddle

from ...utils.errors import InputError
from ...utils.finite import check_finite
from ..residency import OnDemandNetwork
from . import checks, image_prompting
from .arguments import CallArguments
from .denoising import DenoisingState, VelocityModel, denoise, prepare_timesteps
from .guidance import Guidance
from .latents import decode_latents
from .pipeline_output import StableDiffusion3PipelineOutput
from .prompt_encoding import TextCondition
from .prompt_inputs import PromptInputs

if TYPE_CHECKING:
    from .base import StableDiffusion3Base
    from .tasks import Start, Task


class Call:
    """One call of a pipeline, and all that belongs to it alone. The networks are shared and not changed, so calls of
    several threads may run at once.

    Args:
        pipe: whose networks and settings are used.
        task: where the latents start, and what happens beside the loop.
        arguments: what the user passed; not changed.

    Attributes:
        prompts: the prompts among the arguments.
        height, width: of the pictures, in pixels.
        scheduler: a copy of the pipeline's, with the schedule of this call.
        guidance_scale: the argument's, until a callback sets another.
        interrupted: whether the loop stops after the present step.
        num_timesteps: number of steps, once they are known.
    """

    def __init__(self, pipe: StableDiffusion3Base, task: Task, arguments: CallArguments):
        self.pipe, self.task, self.arguments = pipe, task, arguments
        self.prompts = PromptInputs.of(arguments)
        size = pipe.default_sample_size * pipe.vae_scale_factor
        self.height, self.width = arguments.height or size, arguments.width or size
        self.scheduler = copy.deepcopy(pipe._scheduler)
        self.guidance_scale = arguments.guidance_scale
        self.interrupted = False
        self.num_timesteps: int | None = None
        self._guidance: tuple[float | None, Guidance | None] = (None, None)  # a scale, and the guidance of it

    @property
    def batch(self) -> int:
        """Number of pictures: each prompt's, one after the other."""
        return self.prompts.batch * self.arguments.num_images_per_prompt

    @property
    def steps(self) -> int:
        """Number of steps of the whole schedule."""
        given = (self.arguments.sigmas, self.arguments.timesteps)
        return next((len(levels) for levels in given if levels is not None), self.arguments.num_inference_steps)

    @property
    def asked_tensors(self) -> list[str]:
        """What the callback is called with; one of ``ppsd3.callbacks`` knows it by itself."""
        asked = self.arguments.callback_on_step_end_tensor_inputs
        return getattr(self.arguments.callback_on_step_end, "tensor_inputs", asked) or []

    @property
    def guidance(self) -> Guidance:
        """What weighs the prompts, at the present scale."""
        scale, guidance = self._guidance
        if guidance is None or scale != self.guidance_scale:
            guidance = self.pipe._guidance_for(self.arguments, self.guidance_scale)
            self._guidance = self.guidance_scale, guidance
        return guidance

    def latents_shape(self, channels: int) -> list[int]:
        """[B, C, H, W] of the latents."""
        factor = self.pipe.vae_scale_factor
        return [self.batch, channels, self.height // factor, self.width // factor]

    def run(self) -> StableDiffusion3PipelineOutput:
        """The pictures."""
        pipe, arguments = self.pipe, self.arguments

        # 1. Check everything before any work.
        self._check()
        self.task.check(self)

        # 2. Schedule and starting latents: cheap, and they show what is wrong with a generator, latents, sigmas or mu.
        _, _, height, width = self.latents_shape(0)
        image_seq_len = (height // pipe.patch_size) * (width // pipe.patch_size)
        timesteps = prepare_timesteps(self.scheduler, arguments, image_seq_len)
        start = self.task.start(self, timesteps)
        self.num_timesteps = len(start.timesteps)

        with pipe.lora_scaled((arguments.joint_attention_kwargs or {}).get("scale"), "joint_attention_kwargs['scale']"):
            # 3. Prompts -> condition.
            positive, negative = self._conditions()

            # 4. Latents -> latents of the picture.
            guidance = self.guidance
            state = DenoisingState(start.latents, guidance.expand(positive, negative), guidance)
            self._denoise(start, state)

        # 5. Latents -> picture.
        images = state.latents
        if arguments.output_type == "latent":
            check_finite(("transformer", images))
        else:
            with pipe.using("vae") as vae:
                images = decode_latents(vae, images)
            check_finite(("transformer", state.latents), ("vae", images))
            images = self.task.finish(self, pipe.image_processor.postprocess(images, arguments.output_type))
        output = StableDiffusion3PipelineOutput(images=images)
        return output if arguments.return_dict else (images,)  # type: ignore[return-value]

    def _check(self):
        pipe, arguments = self.pipe, self.arguments
        pipe._check_components("transformer", "scheduler", *(["vae"] if arguments.output_type != "latent" else []))
        config = pipe.transformer.config
        multiple = pipe.vae_scale_factor * pipe.patch_size
        checks.check_size(self.height, self.width, multiple, config.pos_embed_max_size * multiple)
        self.prompts.check(pipe)
        checks.check_clip_skip(arguments.clip_skip, (pipe.text_encoder, pipe.text_encoder_2))
        checks.check_callback_tensors(self.asked_tensors, pipe._callback_tensor_inputs)
        checks.check_guidance(arguments, config.num_layers)
        image_prompting.check(self)
        if not isinstance(pipe.transformer, OnDemandNetwork):  # else when it has been read
            self.guidance.check(pipe.transformer)

    def _conditions(self) -> tuple[TextCondition, TextCondition | None]:
        guided = self.guidance.copies > 1
        pictures = image_prompting.read_picture(self, guided)
        arguments = self.arguments
        texts = self.pipe._encode_texts(
            self.prompts, guided, arguments.num_images_per_prompt, arguments.max_sequence_length, arguments.clip_skip
        )
        (positive, negative), (picture, no_picture) = texts, pictures
        return positive.with_image(picture), None if negative is None else negative.with_image(no_picture)

    def _denoise(self, start: Start, state: DenoisingState):
        """Runs the loop over ``start.timesteps``, with progress bar, callback and interruption."""
        pipe, arguments = self.pipe, self.arguments
        # the scale of LoRA layers holds for the whole call, also where text is prepared
        kwargs = {name: value for name, value in (arguments.joint_attention_kwargs or {}).items() if name != "scale"}
        with contextlib.ExitStack() as stack:
            transformer = stack.enter_context(pipe.using("transformer"))
            state.guidance.check(transformer)
            control = None
            if start.control is not None:
                controlnet = stack.enter_context(pipe.using("controlnet"))
                control = start.control.begin(controlnet, transformer, start.timesteps)
            progress_bar = stack.enter_context(pipe.progress_bar(total=len(start.timesteps)))
            velocity = VelocityModel(transformer, start.timesteps, kwargs, start.extra_channels, control)
            velocity = velocity if (cache := pipe._cache) is None else cache.start(velocity)
            for step, timestep, _ in denoise(
                velocity, self.scheduler, start.timesteps, state, start.after_step, arguments.generator
            ):
                if arguments.callback_on_step_end is not None:
                    self._call_back(arguments.callback_on_step_end, start, step, timestep, state)
                progress_bar.update()
                if self.interrupted:
                    break

    def _call_back(self, callback: Any, start: Start, step: int, timestep: paddle.Tensor, state: DenoisingState):
        """Lets the user's callback see what it asked for, and replace it, and the guidance scale, in ``state``."""
        arguments = self.arguments
        prompts = {"prompt_embeds": state.condition.embeds, "pooled_prompt_embeds": state.condition.pooled}
        halved = state.condition.embeds.shape[0] == 2 * state.latents.shape[0]
        negatives = {f"negative_{name}": both.chunk(2)[0] if halved else None for name, both in prompts.items()}
        tensors = {"latents": state.latents, **prompts, **negatives, **start.tensors}
        asked = {name: tensors[name] for name in self.asked_tensors}
        changed = checks.callback_result(callback(self.pipe, step, timestep, asked), state.latents)
        checks.check_callback_tensors(changed, self.pipe._callback_tensor_inputs)
        if getattr(arguments, "guidance", None) is not None and self.guidance_scale != arguments.guidance_scale:
            raise InputError("A callback set `_guidance_scale`, but this call has a `guidance`: change that object.")
        tensors.update(changed)
        state.latents = tensors["latents"]
        start.tensors.update({name: tensors[name] for name in start.tensors})
        state.guidance = self.guidance
        embeds, pooled = (
            _with_negative(tensors[name], name, tensors[f"negative_{name}"], negatives[f"negative_{name}"])
            for name in prompts
        )
        # a condition that did not change stays the same object, and what is known about it with it
        if embeds is not state.condition.embeds or pooled is not state.condition.pooled:
            state.condition = state.condition.with_text(embeds, pooled)
        state.condition = state.guidance.fit(state.condition, state.latents.shape[0])


def _with_negative(both: paddle.Tensor, name: str, negative: Any, before: Any) -> paddle.Tensor:
    """``both`` [negative, positive] with the negative half that a callback returned, if it is another than ``before``.

    Raises:
        InputError: there is no negative half, or it has another shape.
    """
    if negative is before:
        return both
    if before is None or list(negative.shape) != [both.shape[0] // 2, *both.shape[1:]]:
        raise InputError(
            f"A callback returned negative_{name} of shape {list(negative.shape)}, where this call has "
            f"{'none' if before is None else list(before.shape)}. Leave it out, or give it that shape."
        )
    return paddle.concat([negative.astype(both.dtype), both.chunk(2)[1]])
