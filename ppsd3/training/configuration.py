"""The configuration of a training run, from a YAML file and from the command line."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from ..utils.checking import Range, declared_types, fit
from ..utils.elsewhere import nearest
from ..utils.errors import ConfigError
from ..utils.types import PathLike
from .methods import METHODS
from .option_names import settings_of
from .trainer import TrainingOptions

_T = TypeVar("_T")
Count = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What is trained on.

    Args:
        path: a folder of pictures, a data set, or WebDataset shards; see :mod:`ppsd3.training.data.samples`.
        caption_column: of a table; default the first of "text", "caption" and "prompt".
        image_column: of a data set.
        control_column: of the control pictures of a ControlNet.
        instance_prompt: the caption of all pictures.
        resolution: side of a square picture, in pixels.
        max_aspect: of the buckets, long side by short side; 1 cuts all pictures square.
        random_flip, random_crop: vary the pictures.
        skip_broken: leaves out pictures that cannot be opened or are too small, and says how many.
        batch_size: pictures in a batch.
        cache_dir: of latents and text; default "cache" in the output directory.
        class_path: pictures that are to stay as they are, for prior preservation: of the class, or with captions.
        class_prompt: their caption; if there are fewer than ``class_images``, the others are drawn from it. Without it
            each picture of ``class_path`` has its own caption.
        class_images: how many there should be.
        prior_weight: of their loss.
        prior_target: what their predictions are compared with: the "pictures", or, with method "lora", what the "model"
            predicted before training, which keeps more of it and takes the time of one more forward pass.
    """

    path: str
    caption_column: str | None = None
    image_column: str = "image"
    control_column: str | None = None
    instance_prompt: str | None = None
    resolution: Count = 1024
    max_aspect: Annotated[float, Range(1)] = 1.0
    random_flip: bool = False
    random_crop: bool = False
    skip_broken: bool = False
    batch_size: Count = 1
    cache_dir: str | None = None
    class_path: str | None = None
    class_prompt: str | None = None
    class_images: Count = 100
    prior_weight: Annotated[float, Range(0)] = 1.0
    prior_target: Literal["pictures", "model"] = "pictures"


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """The LoRA of method "lora".

    Args:
        rank, alpha: the change is scaled by ``alpha / rank``. Default of ``alpha``: the rank.
        targets: ends of the names of the transformer's layers; default the projections of its joint attention, as in
            diffusers.
        dropout: part of a layer's input that its LoRA does not see.
        kind: "lora"; "dora", which trains lengths and directions of the weights' rows apart (Liu et al. 2024); or
            "lokr", Kronecker products (LyCORIS), a fraction of a LoRA's numbers at the same rank.
        factor: of "lokr": largest side of the first matrix. Default: sides near the square roots of the weight's.
        train_text_encoders: a LoRA on both CLIP encoders too. T5 stays as it is.
    """

    rank: Count = 4
    alpha: Annotated[float, Range(above=0)] | None = None
    targets: list[str] | None = None
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    kind: Literal["lora", "dora", "lokr"] = "lora"
    factor: Count | None = None
    train_text_encoders: bool = False


@dataclasses.dataclass(frozen=True)
class FlowOptions:
    """Times and weights of the loss.

    Args:
        density: "uniform", "logit_normal", "mode" or "cosmap".
        logit_mean, logit_std: of "logit_normal"; a larger mean is more noise, as in the paper.
        mode_scale: of "mode".
        shift: of times towards noise; default the one that the model is sampled at. Validation pictures are drawn at
            it; sample with it too, by ``pipe.scheduler.set_shift``.
        shift_by_size: the shift is that of a picture of the model's own size, and grows with the square root of a
            picture's number of pixels (paper, section 5.3.2).
        indexed: draw as diffusers' scripts do: an index into the scheduler's table, whose beginning is noise, so that a
            larger mean is less noise.
        weight: "none", "sigma_sqrt", "cosmap", "precondition" or "min_snr".
        stratified: spread the times of a batch evenly.
    """

    density: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: Annotated[float, Range(above=0)] | None = None
    shift_by_size: bool = False
    indexed: bool = False
    weight: str = "none"
    stratified: bool = False


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Captions.

    Args:
        max_sequence_length: tokens that T5 gets; longer captions are cut.
        caption_dropout: probability that a caption is replaced by "".
        encoder_dropout: probability that an encoder's output is replaced by zeros, for each encoder by itself.
    """

    max_sequence_length: Annotated[int, Range(1, 512)] = 256
    caption_dropout: Share = 0.0
    encoder_dropout: Share = 0.0


@dataclasses.dataclass(frozen=True)
class ValidationOptions:
    """Pictures that are drawn while training, every ``training.validate_every`` steps.

    Args:
        prompts: of the pictures.
        num_inference_steps, guidance_scale: of drawing, by default the model's; the schedule has its shift.
        seed: of the noise.
    """

    prompts: list[str] = dataclasses.field(default_factory=list)
    num_inference_steps: Count | None = None
    guidance_scale: float | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ControlNetOptions:
    """The ControlNet of method "controlnet".

    Args:
        num_layers: blocks that are copied from the transformer; default half of them.
        from_pretrained: a ControlNet to go on with, in the place of copies.
    """

    num_layers: Count | None = None
    from_pretrained: str | None = None


@dataclasses.dataclass(frozen=True)
class TextualInversionOptions:
    """The word of method "textual_inversion".

    Args:
        token: the new word, which the captions contain. T5 reads it as ordinary text.
        vectors: tokens that it stands for; more hold more of what is learnt, and take more of a prompt's 77.
        initial_word: a word whose embeddings are the first values; default random ones.
        text_encoders: encoders that learn it; default both CLIP encoders.
    """

    token: str = "<concept>"
    vectors: Annotated[int, Range(1, 75)] = 1
    initial_word: str | None = None
    text_encoders: list[Literal["text_encoder", "text_encoder_2"]] | None = None


@dataclasses.dataclass(frozen=True)
class VaeOptions:
    """The autoencoder of method "vae": it learns to reconstruct the pictures, whose captions are not read.

    Args:
        part: "decoder", after which latents are what they were and the transformer still fits; or "all".
        kl_weight: of the KL divergence per pixel value, for part "all".
        edge_weight: extra weight of a pixel at an edge of full contrast.
        latent_noise: standard deviation of noise on latents, so that the decoder tolerates those that are generated.
    """

    part: Literal["decoder", "all"] = "decoder"
    kl_weight: Annotated[float, Range(0)] = 1e-4
    edge_weight: Annotated[float, Range(0)] = 0.0
    latent_noise: Annotated[float, Range(0)] = 0.0


@dataclasses.dataclass(frozen=True)
class IPAdapterOptions:
    """The IP-adapter of method "ip_adapter": each picture is its own picture prompt, beside its caption.

    Args:
        image_encoder: SigLIP with its image processor, a directory or hub id; it stays frozen.
        from_pretrained: an IP-adapter to go on with; a new one has the sizes below, and adds nothing at first.
        hidden_dim, heads, num_queries: of a new one's projection: its width, its heads of 64, its picture tokens.
        picture_dropout: probability that the picture is replaced by zeros, so that guidance can leave it out.
    """

    image_encoder: str = "google/siglip-so400m-patch14-384"
    from_pretrained: str | None = None
    hidden_dim: Count = 1280
    heads: Count = 20
    num_queries: Count = 64
    picture_dropout: Share = 0.05


@dataclasses.dataclass(frozen=True)
class TrainConfiguration:
    """A training run.

    Args:
        model: "shapes", a directory, a hub id or a single file.
        output: directory of the run and its result.
        method: what is trained: "lora", "full" (the transformer), "controlnet", "ip_adapter", "textual_inversion" or
            "vae".
        data, lora, controlnet, ip_adapter, textual_inversion, vae, flow, text, validation, training: see the classes.
        weights: how the frozen transformer's linear layers are held under what is trained beside it: "float32",
            "bfloat16" or "float16" (half the memory), or "int8" (a quarter). What is trained stays float32.
        gradient_checkpointing: computes activations again in the backward pass, in a third of the memory.
    """

    model: str
    output: str
    data: DataOptions
    method: str = "lora"
    lora: LoraOptions = LoraOptions()
    controlnet: ControlNetOptions = ControlNetOptions()
    ip_adapter: IPAdapterOptions = IPAdapterOptions()
    textual_inversion: TextualInversionOptions = TextualInversionOptions()
    vae: VaeOptions = VaeOptions()
    flow: FlowOptions = FlowOptions()
    text: TextOptions = TextOptions()
    validation: ValidationOptions = ValidationOptions()
    training: TrainingOptions = TrainingOptions(
        max_steps=500, lr_schedule="constant", warmup_steps=0, ema_decay=None, betas=(0.9, 0.999), log_every=10
    )
    weights: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"`method` is {self.method!r}; it can be {', '.join(map(repr, METHODS))}.")


def read_configuration(
    path: PathLike | None, settings: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> TrainConfiguration:
    """The configuration in a YAML file, with settings ``section.name=value`` on top, and other trainers' options.

    Args:
        options: by name, see :mod:`ppsd3.training.option_names`; values may be texts.

    Raises:
        ConfigError: the file is missing or no YAML, or a key or value that does not fit; names it.
    """
    values = {} if path is None else _read_yaml(path)
    for setting in settings:
        name, found, text = setting.partition("=")
        if not found or not name:
            raise ConfigError(f"--set {setting}: write section.name=value, e.g. training.max_steps=500.")
        assign(values, name, _parse_yaml(text, f"--set {setting}"))
    given = {name: _scalar(value, f"--{name}") for name, value in (options or {}).items()}
    for name, value in settings_of(given).items():
        assign(values, name, value)
    return build(TrainConfiguration, values, os.fspath(path) if path is not None else "the settings")


def assign(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets ``section.name`` in nested dictionaries.

    Raises:
        ConfigError: a part of the name is a value already.
    """
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: {section} is a value, not a section.")
    values[last] = value


def build(kind: type[_T], values: Mapping[str, Any], source: str, section: str = "") -> _T:
    """A dataclass of options from nested dictionaries.

    Raises:
        ConfigError: an unknown, missing or unfit key; names it and ``source``.
    """
    types, fields = declared_types(kind), {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in fields]
    if unknown:
        hint = nearest(str(unknown[0]), list(fields), f"{section or 'It'} has {', '.join(fields)}.")
        raise ConfigError(f"{source}: {section}{unknown[0]} is no setting. {hint}")
    given: dict[str, Any] = {}
    for name, field in fields.items():
        where = f"{section}{name}"
        if name not in values:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and not dataclasses.is_dataclass(types[name]):
                raise ConfigError(f"{source}: {where} is missing. {meanings(kind)[name]}")
            if not required:
                continue
        value = values.get(name, {})
        if dataclasses.is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {where} is {value!r}; it is a section of settings.")
            base = {} if field.default is dataclasses.MISSING else _given(field.default)
            given[name] = build(types[name], {**base, **value}, source, f"{where}.")  # type: ignore[arg-type]
        else:
            given[name] = _fitting(where, value, types[name], source)
    try:
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"{source}: {section.rstrip('.')}: {error}") from error


def _fitting(name, value, kind, source):
    try:
        return fit(name, value, kind, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def list_settings(kind: type, section: str = "", defaults: Any = None) -> list[str]:
    """A line for each setting: its name, default and meaning; ``defaults`` is an object of the kind."""
    lines, types, texts = [], declared_types(kind), meanings(kind)
    for field in dataclasses.fields(kind):
        name = section + field.name
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = default if defaults is None else getattr(defaults, field.name)
        if dataclasses.is_dataclass(types[field.name]):
            of_section = None if default is dataclasses.MISSING else default
            lines += list_settings(types[field.name], name + ".", of_section)  # type: ignore[arg-type]
            continue
        shown = "required" if default is dataclasses.MISSING else repr(default)
        lines.append(f"{name} ({shown}): {texts[field.name]}")
    return lines


def meanings(kind: type) -> dict[str, str]:
    """What each option means, from the class's docstring."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2].split("\n\n")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", "\n" + text):
        names, colon, meaning = entry.strip().partition(": ")
        if colon:
            found.update({name: " ".join(meaning.split()) for name in names.split(", ")})
    return found


def _given(options):
    """The options as ``build`` takes them."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def _read_yaml(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Name the YAML file of a run.") from error
    values = _parse_yaml(text, os.fspath(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; the configuration of a run is a mapping.")
    return values


def _scalar(value, source):
    """A number or a text that an option's text means."""
    parsed = _parse_yaml(value, source) if isinstance(value, str) else value
    return parsed if isinstance(parsed, (int, float)) else value


def _parse_yaml(text, source):
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(f"{source} is YAML, which PyYAML reads: pip install 'ppsd3[train]'.") from error

    class Loader(yaml.SafeLoader):
        """With 1e-4 as a number; YAML 1.1 wants a dot in it."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
