"""The methods of ``ppsd3 train``: what of a pipeline each one trains, by which task, and how that is shown and saved.

A method is a subclass of :class:`Method` and an entry of :data:`METHODS`, by which a configuration names it. Options of
its own are a section of :class:`~ppsd3.training.configuration.TrainConfiguration`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from PIL import Image

from ..adapters import LoKrConfig, LoraConfig
from ..loaders.ip_adapter import IP_ADAPTER_WEIGHT_NAME
from ..loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE
from ..models import SD3ControlNetModel
from ..pipelines import StableDiffusion3ControlNetPipeline
from ..serialization.writers import write_tensors
from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from ..utils.random import TorchGenerator
from .autoencoder import AutoencoderTask, to_model_range
from .controlnet import ControlNetTask
from .data.batches import Pictures
from .data.buckets import Crop
from .data.samples import Sample
from .ip_adapter import IPAdapterTask, PictureFeatures, new_adapter
from .option_names import JOINT_ATTENTION
from .shifts import SizeShift, static_shift
from .text_to_image import TextToImageTask
from .texts import TOWERS
from .textual_inversion import train_word
from .timestep_sampling import Density, Indexed, timestep_density
from .trainer import Task

if TYPE_CHECKING:
    from .configuration import DataOptions, FlowOptions, TrainConfiguration
    from .runs import TrainingRun

CLIP_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
_LORA = "default"


class Method:
    """One way to train a pipeline; the base reads captioned pictures with the transformer's own task.

    Args:
        configuration: of the run.
        pipe: whose networks are frozen; the method makes what it trains.

    Attributes:
        result: name of what is saved, in the output directory.
        sections: those of the configuration that it reads, beside data, validation and training.
        freezes_transformer: whether its weights can be held in few bits.
        towers: names of the text encoders whose output changes in training.
        shifted_controls: whether control pictures are latents with the VAE's shift, as nearly all are.

    Raises:
        ConfigError: settings that do not go with the method or with one another; see :meth:`check`.
    """

    result: str = ""
    sections: tuple[str, ...] = ("flow", "text")
    freezes_transformer: bool = True
    shifted_controls: bool = True

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        self.configuration: TrainConfiguration = configuration
        self.pipe: Any = pipe
        self.towers: list[str] = []

    @classmethod
    def check(cls, configuration: TrainConfiguration) -> None:
        """Raises ConfigError where settings do not go together, before anything is loaded."""
        method, column = configuration.method, configuration.data.control_column
        if column is not None and cls is not ControlNet:
            raise ConfigError(
                f"method is {method!r} and data.control_column is {column!r}: a ControlNet alone reads control "
                "pictures. Leave the column out, or set method=controlnet."
            )
        for field in dataclasses.fields(configuration):
            given = dataclasses.is_dataclass(field.default) and getattr(configuration, field.name) != field.default
            if given and field.name not in (*cls.sections, "validation", "training"):
                raise ConfigError(f"method is {method!r}, which does not read {field.name}.*: leave that section out.")
        if configuration.data.prior_target == "model":
            cls.check_prior_target(configuration.data)
        if configuration.weights != "float32" and not cls.freezes_transformer:
            raise ConfigError(
                f"weights is {configuration.weights!r}, in which frozen weights are held, and method {method!r} has no "
                "frozen transformer. Leave weights out."
            )

    @classmethod
    def check_prior_target(cls, data: DataOptions) -> None:
        """Raises ConfigError unless the model before training can be asked."""
        raise ConfigError(
            "data.prior_target is 'model', and only method 'lora' can switch off what it trains. Use 'pictures'."
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else a resumed run must share, as JSON values."""
        return {}

    def make_task(self, run: TrainingRun) -> Task:
        """What the trainer trains; made of ``run.texts`` and ``run.batches``, or of ``run.samples``."""
        task = self.text_to_image(run, **flow_options(self.configuration.flow, self.pipe, run.size_shift))
        # One that is frozen too: in training mode it can compute activations again.
        task.layers.update({name: getattr(self.pipe, name) for name in ("transformer", *self.towers)})
        task.settings.update(run.batches.configuration, **run.settings)
        return task

    def text_to_image(self, run: TrainingRun, **options: Any) -> TextToImageTask:
        """The task; ``options`` are of times and weights."""
        return TextToImageTask(self.pipe.transformer, run.texts, run.batches, **options)

    def image_features(self, run: TrainingRun, samples: Sequence[Sample]) -> PictureFeatures | None:
        """What batches have of pictures beside latents; None for nothing."""
        return None

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
        steps = {"num_inference_steps": options.num_inference_steps, "guidance_scale": options.guidance_scale}
        return pipe(
            prompt_embeds=positive.embeds,
            pooled_prompt_embeds=positive.pooled,
            negative_prompt_embeds=negative.embeds,
            negative_pooled_prompt_embeds=negative.pooled,
            height=side,
            width=side,
            generator=TorchGenerator(options.seed),
            **pipe.with_call_defaults(steps),
            **arguments,
        ).images[0]


class Lora(Method):
    """A LoRA, DoRA or LoKr on the transformer, and on both CLIP encoders if asked."""

    sections = (*Method.sections, "lora")
    result = "pytorch_lora_weights.safetensors"

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        options = configuration.lora
        quantize_frozen(pipe.transformer, configuration.weights)
        pipe.transformer.add_adapter(_adapter(options, options.targets or JOINT_ATTENTION), _LORA)
        self.towers = list(TOWERS[:2]) if options.train_text_encoders else []
        for name in self.towers:
            getattr(pipe, name).add_adapter(_adapter(options, CLIP_TARGETS), _LORA)

    @classmethod
    def check(cls, configuration: TrainConfiguration) -> None:
        super().check(configuration)
        options = configuration.lora
        if options.dropout and options.kind != "lora":
            raise ConfigError(
                f"lora.dropout is {options.dropout}, and lora.kind {options.kind!r} has none. Set it to 0."
            )
        if options.factor is not None and options.kind != "lokr":
            raise ConfigError(f"lora.factor is {options.factor}; only lora.kind=lokr has one. Leave it out.")

    @property
    def settings(self) -> Mapping[str, Any]:
        target = self.configuration.data.prior_target
        return {"lora": repr(self.configuration.lora), **({} if target == "pictures" else {"prior_target": target})}

    @classmethod
    def check_prior_target(cls, data: DataOptions) -> None:
        if data.class_path is None and data.class_prompt is None:
            raise ConfigError(
                "data.prior_target is 'model', and there are no pictures to keep. Give data.class_path or "
                "data.class_prompt, or leave it out."
            )

    def text_to_image(self, run: TrainingRun, **options: Any) -> TextToImageTask:
        if self.configuration.data.prior_target == "model":
            options["before"] = self.switched_off
        return super().text_to_image(run, **options)

    @contextlib.contextmanager
    def switched_off(self) -> Any:
        self.pipe.disable_lora()
        try:
            yield
        finally:
            self.pipe.enable_lora()

    def save(self, output: str) -> None:
        """With ``alpha / rank`` multiplied in: most readers know nothing of an alpha, and take the rank for it."""
        layers: dict[str, Any] = {}
        for name, (tensors, config) in self.pipe._layers_to_save(_LORA).items():
            if config:  # of products of low rank; LoKr's names have no alpha
                scale = config["lora_alpha"] / config["r"]
                tensors = {key: t * scale if "lora_B" in key else t for key, t in tensors.items()}
                config = {**config, "lora_alpha": config["r"]}
            layers[f"{name}_lora_layers"], layers[f"{name}_lora_adapter_metadata"] = tensors, config
        self.pipe.save_lora_weights(output, **layers)


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

    sections = (*Method.sections, "controlnet")
    result = "controlnet"

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        chosen, transformer = configuration.controlnet, pipe.transformer
        if chosen.from_pretrained is not None:
            self.controlnet: SD3ControlNetModel = SD3ControlNetModel.from_pretrained(chosen.from_pretrained)
        else:
            layers = chosen.num_layers or max(1, transformer.config.num_layers // 2)
            self.controlnet = SD3ControlNetModel.from_transformer(transformer, num_layers=layers)
        self.shifted_controls = not self.controlnet.config.force_zeros_for_pooled_projection
        quantize_frozen(transformer, configuration.weights)  # after the copies, which are trained

    @classmethod
    def check(cls, configuration: TrainConfiguration) -> None:
        super().check(configuration)
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
        assert opened is not None  # a ControlNet's samples have control pictures
        picture = Image.fromarray(Crop((side, side)).apply(opened()))
        pipe = StableDiffusion3ControlNetPipeline.from_pipe(self.pipe, controlnet=self.controlnet)
        return pipe, {"control_image": picture}

    def save(self, output: str) -> None:
        self.controlnet.save_pretrained(os.path.join(output, self.result))


class IPAdapter(Method):
    """An IP-adapter on the frozen transformer."""

    sections = (*Method.sections, "ip_adapter")
    result = IP_ADAPTER_WEIGHT_NAME

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        options = configuration.ip_adapter
        quantize_frozen(pipe.transformer, configuration.weights)
        pipe.load_image_encoder(options.image_encoder)
        if options.from_pretrained is not None:
            pipe.load_ip_adapter(options.from_pretrained, image_encoder_folder=None)
        else:
            sizes = {"hidden_dim": options.hidden_dim, "heads": options.heads, "num_queries": options.num_queries}
            new_adapter(pipe.transformer, pipe.image_encoder.config.hidden_size, **sizes)
        for parameter in pipe.transformer.ip_adapter.parameters():
            parameter.stop_gradient = False
        pipe.set_ip_adapter_scale(1.0)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"ip_adapter": repr(self.configuration.ip_adapter)}

    def image_features(self, run: TrainingRun, samples: Sequence[Sample]) -> PictureFeatures | None:
        self.features: PictureFeatures = PictureFeatures(
            self.pipe, run.cache("pictures"), self.configuration.ip_adapter.picture_dropout
        )
        self.features.prepare(samples)
        return self.features

    def text_to_image(self, run: TrainingRun, **options: Any) -> TextToImageTask:
        return IPAdapterTask(self.pipe.transformer, run.texts, run.batches, **options)

    def drawing(self, run: TrainingRun) -> tuple[Any, dict[str, Any]]:
        features = paddle.to_tensor(self.features.of(run.batches.samples[0])[None])
        scale = {"guidance_scale": self.configuration.validation.guidance_scale}
        if self.pipe.with_call_defaults(scale)["guidance_scale"] > 1:
            features = paddle.concat([paddle.zeros_like(features), features])
        return self.pipe, {"ip_adapter_image_embeds": features}

    def save(self, output: str) -> None:
        tensors = self.pipe.transformer.ip_adapter.state_dict()
        with atomic_write(os.path.join(output, self.result)) as file:
            write_tensors(file, tensors, {"format": "pt"})


class TextualInversion(Method):
    """A new word: rows of the CLIP encoders' embedding tables."""

    sections = (*Method.sections, "textual_inversion")
    result = TEXT_INVERSION_NAME_SAFE

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        options = configuration.textual_inversion
        self.towers = [name for name in TOWERS[:2] if name in (options.text_encoders or TOWERS)]
        quantize_frozen(pipe.transformer, configuration.weights)
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


class Vae(Method):
    """The autoencoder, or its decoder alone, on pictures without captions; shown by reconstructions."""

    result = "vae"
    sections = ("vae",)
    freezes_transformer = False
    _SHOWN = 4  # pictures

    def __init__(self, configuration: TrainConfiguration, pipe: Any) -> None:
        super().__init__(configuration, pipe)
        decoder_only = configuration.vae.part == "decoder"
        for name, parameter in pipe.vae.named_parameters():
            parameter.stop_gradient = decoder_only and not name.startswith(("decoder.", "post_quant_conv."))

    @classmethod
    def check(cls, configuration: TrainConfiguration) -> None:
        super().check(configuration)
        data = configuration.data
        given = {
            "data.caption_column": data.caption_column,
            "data.instance_prompt": data.instance_prompt,
            "data.class_prompt": data.class_prompt,
            "data.class_path": data.class_path,
            "validation.prompts": configuration.validation.prompts,
        }
        for name, value in given.items():
            if value:
                raise ConfigError(
                    f"{name} is {value!r}, and method 'vae' reads pictures alone, which it shows reconstructed every "
                    "training.validate_every steps. Leave it out."
                )
        options = configuration.vae
        if options.part == "decoder" and options.kl_weight != type(options).kl_weight:
            raise ConfigError("vae.kl_weight is of the encoder, which vae.part=decoder does not train. Leave it out.")

    def make_task(self, run: TrainingRun) -> Task:
        options, batch = self.configuration.vae, self.configuration.data.batch_size
        self.pictures: Pictures = Pictures(run.open_samples(""), run.buckets, run.augmentation)
        for name in ("transformer", *TOWERS):  # not needed any more
            setattr(self.pipe, name, None)
        weights = options.kl_weight, options.edge_weight, options.latent_noise
        return AutoencoderTask(self.pipe.vae, self.pictures, batch, *weights, {**run.settings, "part": options.part})

    def checkpoint_gradients(self) -> None:
        self.pipe.vae.enable_gradient_checkpointing()

    @property
    def validates(self) -> bool:
        return self.configuration.training.validate_every is not None

    def validation(self, run: TrainingRun) -> tuple[Sequence[Image.Image], Mapping[str, float]]:
        shown = self.pictures.first(self._SHOWN)
        vae = self.pipe.vae
        again = [vae.decode(vae.encode(to_model_range(x[None])).latent_dist.mode()).sample for x in shown]
        again = [np.asarray(((x + 1) * 127.5).round().clip(0, 255)[0].transpose([1, 2, 0])) for x in again]
        errors = np.mean([np.square(x.astype(np.float64) - y).mean() for x, y in zip(shown, again)])
        pairs = [Image.fromarray(np.concatenate([x, y.astype(np.uint8)])) for x, y in zip(shown, again)]
        return pairs, {"psnr": float(10 * np.log10(255**2 / max(errors, 1e-12)))}

    def save(self, output: str) -> None:
        self.pipe.vae.save_pretrained(os.path.join(output, self.result))


METHODS: dict[str, type[Method]] = {
    "lora": Lora,
    "full": Full,
    "controlnet": ControlNet,
    "ip_adapter": IPAdapter,
    "textual_inversion": TextualInversion,
    "vae": Vae,
}


def quantize_frozen(transformer: Any, weights: str) -> None:
    """Makes the weights int8 if ``weights`` says so and they are not; 16-bit ones are loaded as such."""
    if weights == "int8" and not transformer.is_quantized:
        transformer.quantize("int8")


def flow_options(flow: FlowOptions, pipe: Any, size_shift: SizeShift | None = None) -> dict[str, Any]:
    """Times and weights as :class:`~ppsd3.training.text_to_image.TextToImageTask` takes them."""
    shift = static_shift(pipe.scheduler) if size_shift is None else 1.0
    law: Density | Indexed = timestep_density(
        flow.density, flow.logit_mean, flow.logit_std, flow.mode_scale, 1.0 if flow.indexed else shift
    )
    density = Indexed(law, shift) if isinstance(law, Density) and flow.indexed else law
    return {"density": density, "weight": flow.weight, "stratified": flow.stratified, "size_shift": size_shift}


def _adapter(options, targets):
    alpha = options.rank if options.alpha is None else options.alpha
    if options.kind == "lokr":
        return LoKrConfig(options.rank, alpha, targets, decompose_factor=options.factor or -1)
    return LoraConfig(
        r=options.rank,
        lora_alpha=alpha,
        lora_dropout=options.dropout,
        use_dora=options.kind == "dora",
        target_modules=targets,
    )
