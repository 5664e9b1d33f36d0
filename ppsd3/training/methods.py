"""The methods of ``ppsd3 train``: what of a pipeline each one trains, by which task, and how that is shown and saved.

A method is a subclass of :class:`Method` and an entry of :data:`METHODS`, by which a configuration names it. Options of
its own are a section of :class:`~ppsd3.training.configuration.TrainConfiguration`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..adapters import LoraConfig
from ..loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE
from ..models import SD3ControlNetModel
from ..pipelines import StableDiffusion3ControlNetPipeline
from ..utils.errors import ConfigError
from ..utils.random import TorchGenerator
from .controlnet import ControlNetTask
from .text_to_image import TextToImageTask
from .texts import TOWERS
from .textual_inversion import train_word
from .timestep_sampling import Density, Indexed, timestep_density
from .trainer import Task

if TYPE_CHECKING:
    from .configuration import FlowOptions, TrainConfiguration
    from .runs import TrainingRun

CLIP_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
JOINT_ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]  # diffusers' default
_LORA = "default"


class Method:
    """One way to train a pipeline; the base reads captioned pictures with the transformer's own task.

    Args:
        configuration: of the run.
        pipe: whose networks are frozen; the method makes what it trains.

    Attributes:
        result: name of what is saved, in the output directory.
        freezes_transformer: whether its weights can be held in few bits.
        towers: names of the text encoders whose output changes in training.

    Raises:
        ConfigError: settings that do not go with the method or with one another; see :meth:`check`.
    """

    result: str = ""
    freezes_transformer: bool = True

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        self.configuration: TrainConfiguration = configuration
        self.pipe: Any = pipe
        self.towers: list[str] = []

    @classmethod
    def check(cls, configuration: TrainConfiguration) -> None:
        """Raises ConfigError where settings do not go together, before anything is loaded."""
        method, column = configuration.method, configuration.data.control_column
        if column is not None:
            raise ConfigError(
                f"method is {method!r} and data.control_column is {column!r}: a ControlNet alone reads control "
                "pictures. Leave the column out, or set method=controlnet."
            )
        if configuration.weights != "float32" and not cls.freezes_transformer:
            raise ConfigError(
                f"weights is {configuration.weights!r}, in which frozen weights are held, and method {method!r} has no "
                "frozen transformer. Leave weights out."
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else a resumed run must share, as JSON values."""
        return {}

    def make_task(self, run: TrainingRun) -> Task:
        """What the trainer trains; made of ``run.texts`` and ``run.batches``, or of ``run.samples``."""
        task = self.text_to_image(run, **flow_options(self.configuration.flow, self.pipe))
        # One that is frozen too: in training mode it can compute activations again.
        task.layers.update({name: getattr(self.pipe, name) for name in ("transformer", *self.towers)})
        task.settings.update(run.batches.configuration, **run.settings)
        return task

    def text_to_image(self, run: TrainingRun, **options: Any) -> TextToImageTask:
        """The task; ``options`` are of times and weights."""
        return TextToImageTask(self.pipe.transformer, run.texts, run.batches, **options)

    def checkpoint_gradients(self) -> None:
        """Lets networks that gradients pass through compute their activations again in the backward pass."""
        for name in ("transformer", *self.towers):
            getattr(self.pipe, name).enable_gradient_checkpointing()

    def switched_off(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, the pipeline draws as it did before training."""
        return contextlib.nullcontext()

    def save(self, output: str) -> None:
        """Writes :attr:`result` into the directory ``output``."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- validation

    @property
    def validates(self) -> bool:
        """Whether there is anything to show while training."""
        return bool(self.configuration.validation.prompts)

    def validation(self, run: TrainingRun) -> tuple[Sequence[Image.Image], Mapping[str, float]]:
        """Pictures of one size, and numbers for the log."""
        return [self._draw(run, prompt) for prompt in self.configuration.validation.prompts], {}

    def drawing(self, run: TrainingRun) -> tuple[Any, dict[str, Any]]:
        """The pipeline that draws with what is trained, and arguments for it."""
        return self.pipe, {}

    def _draw(self, run, prompt):
        options, side = self.configuration.validation, self.configuration.data.resolution
        lengths = run.batches.clip_length, run.batches.t5_length
        positive, negative = (run.texts.plain([text], *lengths) for text in (prompt, ""))
        pipe, arguments = self.drawing(run)
        return pipe(
            prompt_embeds=positive.embeds,
            pooled_prompt_embeds=positive.pooled,
            negative_prompt_embeds=negative.embeds,
            negative_pooled_prompt_embeds=negative.pooled,
            height=side,
            width=side,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            generator=TorchGenerator(options.seed),
            **arguments,
        ).images[0]


class Lora(Method):
    """A LoRA, DoRA or LoKr on the transformer, and on both CLIP encoders if asked."""

    result = "pytorch_lora_weights.safetensors"

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        options = configuration.lora
        hold_frozen(pipe.transformer, configuration.weights)
        pipe.transformer.add_adapter(_adapter(options, options.targets or JOINT_ATTENTION), _LORA)
        self.towers = list(TOWERS[:2]) if options.train_text_encoders else []
        for name in self.towers:
            getattr(pipe, name).add_adapter(_adapter(options, CLIP_TARGETS), _LORA)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"lora": repr(self.configuration.lora)}

    @contextlib.contextmanager
    def switched_off(self) -> Any:
        self.pipe.disable_lora()
        try:
            yield
        finally:
            self.pipe.enable_lora()

    def save(self, output: str) -> None:
        self.pipe.save_lora_weights(output)


class Full(Method):
    """The whole transformer."""

    result = "transformer"
    freezes_transformer = False

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        for parameter in pipe.transformer.parameters():
            parameter.stop_gradient = False

    def save(self, output: str) -> None:
        self.pipe.transformer.save_pretrained(os.path.join(output, self.result))


class ControlNet(Method):
    """A ControlNet beside the frozen transformer."""

    result = "controlnet"

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        chosen, transformer = configuration.controlnet, pipe.transformer
        if chosen.from_pretrained is not None:
            self.controlnet: SD3ControlNetModel = SD3ControlNetModel.from_pretrained(chosen.from_pretrained)
        else:
            layers = chosen.num_layers or max(1, transformer.config.num_layers // 2)
            self.controlnet = SD3ControlNetModel.from_transformer(transformer, num_layers=layers)
        hold_frozen(transformer, configuration.weights)  # after the copies, which are trained

    @classmethod
    def check(cls, configuration: TrainConfiguration) -> None:
        if configuration.data.control_column is None:
            raise ConfigError(
                "method is 'controlnet' and data.control_column is not given: a ControlNet learns from control "
                "pictures. Name their column."
            )

    def text_to_image(self, run: TrainingRun, **options: Any) -> TextToImageTask:
        return ControlNetTask(self.controlnet, self.pipe.transformer, run.texts, run.batches, **options)

    def checkpoint_gradients(self) -> None:
        super().checkpoint_gradients()
        self.controlnet.enable_gradient_checkpointing()

    def drawing(self, run: TrainingRun) -> tuple[Any, dict[str, Any]]:
        side, opened = self.configuration.data.resolution, run.batches.samples[0].open_control
        picture = None if opened is None else opened().resize((side, side))
        pipe = StableDiffusion3ControlNetPipeline.from_pipe(self.pipe, controlnet=self.controlnet)
        return pipe, {"control_image": picture}

    def save(self, output: str) -> None:
        self.controlnet.save_pretrained(os.path.join(output, self.result))


class TextualInversion(Method):
    """A new word: rows of the CLIP encoders' embedding tables."""

    result = TEXT_INVERSION_NAME_SAFE

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        options = configuration.textual_inversion
        self.towers = [name for name in TOWERS[:2] if name in (options.text_encoders or TOWERS)]
        hold_frozen(pipe.transformer, configuration.weights)
        train_word(pipe, options.token, options.vectors, options.initial_word, self.towers)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"textual_inversion": repr(self.configuration.textual_inversion)}

    def make_task(self, run: TrainingRun) -> Task:
        token = self.configuration.textual_inversion.token
        if not any(token.lower() in sample.caption.lower() for sample in run.batches.samples):
            raise ConfigError(
                f"No caption has the word {token!r} (textual_inversion.token), so it would learn nothing. Write it "
                f"into the captions, or give all pictures one: data.instance_prompt='a photo of {token}'."
            )
        return super().make_task(run)

    def save(self, output: str) -> None:
        self.pipe.save_textual_inversion(output, self.configuration.textual_inversion.token)


METHODS: dict[str, type[Method]] = {
    "lora": Lora,
    "full": Full,
    "controlnet": ControlNet,
    "textual_inversion": TextualInversion,
}


def hold_frozen(network: Any, weights: str) -> None:
    """Holds the linear layers' weights of a frozen network in ``weights``; gradients still pass through them."""
    if weights == "int8":
        network.quantize("int8")
    elif weights != "float32":
        network.enable_layerwise_casting(weights)


def flow_options(flow: FlowOptions, pipe: Any) -> dict[str, Any]:
    """Times and weights as :class:`~ppsd3.training.text_to_image.TextToImageTask` takes them."""
    shift = float(pipe.scheduler.config.shift) if flow.shift is None else flow.shift
    law: Density | Indexed = timestep_density(
        flow.density, flow.logit_mean, flow.logit_std, flow.mode_scale, 1.0 if flow.indexed else shift
    )
    density = Indexed(law, shift) if isinstance(law, Density) and flow.indexed else law
    return {"density": density, "weight": flow.weight, "stratified": flow.stratified}


def _adapter(options, targets):
    alpha = options.rank if options.alpha is None else options.alpha
    return LoraConfig(
        r=options.rank,
        lora_alpha=alpha,
        lora_dropout=options.dropout,
        use_dora=options.kind == "dora",
        target_modules=targets,
    )
