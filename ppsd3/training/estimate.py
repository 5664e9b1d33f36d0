"""What a run will need: memory by kind and time, before anything long.

:func:`expected_memory` counts from configurations alone. :func:`estimate_training` also takes a few steps in a process
of its own, and measures. What a step keeps for its backward pass was found by measuring blocks of many sizes on a CPU;
on a GPU nothing is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import paddle

from ..adapters.network import LoraConfig, linear_layers
from ..modeling_utils import ModelMixin, to_be_filled
from ..models import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from ..transformers import CLIPTextModelWithProjection, T5EncoderModel
from ..utils import errors
from ..utils.device import available_memory, peak_resident_set, tune_process
from ..utils.errors import ConfigError, InputError, PPSD3Error
from ..utils.files import atomic_write
from ..utils.json_files import parse_json_object, read_json
from ..utils.paddle_internals import allocated_memory, peak_allocated_memory
from ..utils.sizes import in_words
from .configuration import TrainConfiguration, build
from .methods import CLIP_TARGETS
from .option_names import JOINT_ATTENTION
from .published import PUBLISHED, Configurations
from .rehearsal import Rehearsal, bytes_of, refuse_ranks
from .texts import TOWERS

_CLASSES: dict[str, type[ModelMixin]] = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
_HELD = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # bytes of a number of a frozen linear layer
_KEPT_IN_MEMORY = 256  # entries of a cache on disk
_CLIP_TOKENS = 77

# What a block keeps for its backward pass: float32 numbers for each token and channel of the width.
_BLOCK, _QK_NORM, _DUAL_ATTENTION, _LAST_TEXT, _BEFORE_AND_AFTER = 18, 2, 9, 2, 6
_CLIP_LAYER = 16
_MIXED = 0.6  # of these bytes under mixed precision: the norms' inputs stay float32; counted, not measured
# The VAE's working memory: float32 numbers for each pixel and channel of its first width.
_ENCODER, _DECODER = 5, 6


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes by kind.

    Attributes:
        weights: networks that stay, without what is trained: the transformer where it is frozen, and the VAE.
        masters: what is trained, in float32.
        gradients, optimizer, ema: of what is trained.
        activations: what a step keeps for its backward pass.
        caches: latents and texts that are kept in memory.
        before_training: what goes before that: text encoders, and what ``weights`` saves of those that were loaded.
        pictures: the VAE's working memory, while it encodes a picture or draws a validation picture.
        process: libraries' buffers and freed memory that the C library keeps; measured only.
    """

    weights: int
    masters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    caches: int = 0
    before_training: int = 0
    pictures: int = 0
    process: int = 0

    @property
    def while_encoding(self) -> int:
        """Bytes while captions are encoded, before training."""
        return self.weights + self.masters + self.before_training + self.process

    @property
    def while_training(self) -> int:
        """Bytes at the peak of a step."""
        state = self.weights + self.masters + self.gradients + self.optimizer + self.ema + self.caches
        return state + max(self.activations, self.pictures) + self.process

    @property
    def peak(self) -> int:
        """The most of both."""
        return max(self.while_encoding, self.while_training)

    def lines(self) -> Iterator[str]:
        """A line for each kind, and the sums."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name):
                yield f"{field.name.replace('_', ' '):<24}{in_words(getattr(self, field.name)):>12}"
        for name in ("while_encoding", "while_training", "peak"):
            yield f"{name.replace('_', ' '):<24}{in_words(getattr(self, name)):>12}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        expected: memory as counted from configurations; None where these do not say.
        measured: memory as measured in a few steps; None if it was only counted.
        seconds_per_step: median of the measured steps, without the first.
        seconds_before: for captions and pictures, which are encoded once.
        steps: of the run.
    """

    expected: Memory | None
    measured: Memory | None = None
    seconds_per_step: float = 0.0
    seconds_before: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Of the whole run, without validation pictures."""
        return self.seconds_before + self.steps * self.seconds_per_step

    def lines(self) -> Iterator[str]:
        """For people."""
        for title, memory in (("counted from the configurations", self.expected), ("measured here", self.measured)):
            if memory is not None:
                yield f"memory, {title}:"
                yield from (f"  {line}" for line in memory.lines())
        if self.measured is not None:
            yield f"time per step             {self.seconds_per_step:8.2f} s"
            yield f"time to encode            {self.seconds_before:8.1f} s"
            yield f"time of {self.steps} steps: {self.seconds / 3600:.2f} hours, without validation pictures"


def estimate_training(configuration: TrainConfiguration, measure: bool = True) -> Estimate:
    """Memory and time of a run.

    Args:
        measure: takes four steps on the samples of the first batch, in a process of its own; otherwise, and for a
            published model's name (see ``training.published``), only counts.

    Raises:
        ConfigError, InputError: what the run itself would raise, or the model does not fit into this machine's memory.
    """
    refuse_ranks("--estimate")
    networks = PUBLISHED.get(configuration.model) or _configurations(configuration.model)
    expected = None if networks is None else expected_memory(configuration, networks)
    if not measure or configuration.model in PUBLISHED:
        if expected is None:
            raise ConfigError(f"{configuration.model}: nothing is known of this run before it is measured.")
        return Estimate(expected, steps=configuration.training.max_steps)
    free = available_memory()
    if expected is not None and expected.peak > free:
        raise InputError(
            f"The run needs {in_words(expected.peak)} and {in_words(free)} are free, so it cannot be measured:\n"
            + "\n".join(expected.lines())
        )
    answer = _measured_elsewhere(configuration)
    return Estimate(
        expected,
        Memory(**answer["memory"]),
        answer["seconds_per_step"],
        answer["seconds_before"],
        configuration.training.max_steps,
    )


# ------------------------------------------------------------------------------------------------------------- counted


def expected_memory(
    configuration: TrainConfiguration, networks: Configurations, samples: int = 20, mixed: bool = False
) -> Memory | None:
    """Memory of a run by the configurations of its networks, without any weights.

    Args:
        networks: component -> its configuration; text encoders may be missing.
        samples: of the data.
        mixed: with 16-bit operations, whatever ``training.mixed_precision`` says.

    Returns:
        None for a method that is not counted: all but "full", "controlnet", and "lora" of kind "lora".
    """
    method, options = configuration.method, configuration.training
    if method not in ("lora", "full", "controlnet") or (method == "lora" and configuration.lora.kind != "lora"):
        return None
    built = {name: _built(name, json.dumps(networks[name])) for name in _CLASSES if name in networks}
    transformer = built["transformer"]
    towers = [name for name in TOWERS if name in built]
    live = list(TOWERS[:2]) if method == "lora" and configuration.lora.train_text_encoders else []
    trained, passed = _trained(configuration, transformer, [built[name] for name in live])
    frozen = _held(transformer, configuration.weights) - (4 * sum(trained) if method == "full" else 0)
    saved = _held(transformer, "float32") - _held(transformer, configuration.weights)
    clip_tokens = networks.get("text_encoder", {}).get("max_position_embeddings", _CLIP_TOKENS)
    text_tokens = clip_tokens + configuration.text.max_sequence_length
    data = configuration.data
    rows = data.batch_size * (1 if data.class_prompt is None and data.class_path is None else 2)
    side, vae = configuration.data.resolution, networks["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    mixed = mixed or options.mixed_precision != "no"
    activations = sum(
        _kept(network, side // factor, text_tokens, configuration.gradient_checkpointing) for network in passed
    ) + sum(_kept_by_clip(built[name], configuration.gradient_checkpointing) for name in live)
    bytes_trained = 4 * sum(trained)
    work = _DECODER if configuration.validation.prompts else _ENCODER
    row = 4 * (text_tokens * transformer.config.joint_attention_dim + transformer.config.pooled_projection_dim)
    latents = 2 * 4 * vae["latent_channels"] * (side // factor) ** 2
    return Memory(
        weights=frozen + 4 * sum(map(_numbers, (built["vae"], *(built[name] for name in live)))),
        masters=bytes_trained,
        gradients=bytes_trained,
        optimizer=_moments(options, trained, bytes_trained),
        ema=0 if options.ema_decay is None else bytes_trained,
        activations=int(rows * activations * (_MIXED if mixed else 1.0)),
        caches=min(samples, _KEPT_IN_MEMORY) * (row + latents),
        before_training=saved + 4 * sum(_numbers(built[name]) for name in towers if name not in live),
        pictures=4 * work * vae["block_out_channels"][0] * side * side,
    )


@functools.lru_cache(maxsize=16)
def _built(component, config):
    """The network, without memory for its weights; ``config`` is JSON."""
    with to_be_filled():
        return _CLASSES[component].from_config(parse_json_object(config, component))


def _numbers(network):
    """Of all that it holds: parameters, and buffers such as tables of positions."""
    return sum(math.prod(tensor.shape) for tensor in network.state_dict().values())


def _held(transformer, weights):
    """Bytes of a frozen transformer, whose linear layers are held in ``weights``."""
    linear = sum(layer.out_features * layer.in_features for layer in linear_layers(transformer).values())
    return 4 * _numbers(transformer) - (4 - _HELD[weights]) * linear


def _trained(configuration, transformer, towers):
    """Numbers of each matrix that is trained, and the networks that gradients pass through."""
    if configuration.method == "full":
        return [int(p.size) for p in transformer.parameters()], [transformer]
    if configuration.method == "lora":
        targets = configuration.lora.targets or JOINT_ATTENTION
        pairs = [(transformer, targets), *((tower, CLIP_TARGETS) for tower in towers)]
        layers = [
            layer
            for network, wanted in pairs
            for name, layer in linear_layers(network).items()
            if LoraConfig(target_modules=wanted).matches(name, layer)
        ]
        rank = configuration.lora.rank
        return [rank * size for layer in layers for size in (layer.in_features, layer.out_features)], [transformer]
    chosen = configuration.controlnet
    with to_be_filled():
        if chosen.from_pretrained is not None:
            net = SD3ControlNetModel.from_config(SD3ControlNetModel.load_config(chosen.from_pretrained))
        else:
            layers = chosen.num_layers or max(1, transformer.config.num_layers // 2)
            net = SD3ControlNetModel.from_transformer(transformer, layers, load_weights_from_transformer=False)
    return [int(p.size) for p in net.parameters()], [transformer, net]


def _kept(network, grid, text_tokens, checkpointing):
    """Bytes that one row of a batch keeps of a network for its backward pass, and what that needs beside.

    Checkpointing keeps the input of each block, and one block's own.
    """
    config = network.config
    width = config.num_attention_heads * config.attention_head_dim
    image = (grid // config.patch_size) ** 2
    text = 0 if config.joint_attention_dim is None else text_tokens
    per_token = _BLOCK + (_QK_NORM if config.get("qk_norm") else 0)
    dual = len(config.dual_attention_layers or ())
    if checkpointing:
        inside = per_token * (image + text) + (_DUAL_ATTENTION * image if dual else 0)
        blocks = config.num_layers * (image + text) + inside
    else:
        blocks = config.num_layers * per_token * (image + text) - (per_token - _LAST_TEXT) * text
        blocks += dual * _DUAL_ATTENTION * image
    return 4 * width * (blocks + _BEFORE_AND_AFTER * (image + text))


def _kept_by_clip(network, checkpointing):
    layers = network.config.num_hidden_layers
    kept = layers + _CLIP_LAYER if checkpointing else layers * _CLIP_LAYER
    return 4 * _CLIP_TOKENS * network.config.hidden_size * kept


def _moments(options, trained, bytes_trained):
    if options.optimizer == "adafactor":  # a row and a column of each matrix, and the momentum
        return (bytes_trained if options.betas[0] else 0) + 4 * sum(int(2 * size**0.5) for size in trained)
    if options.optimizer == "sgd":
        return bytes_trained
    return 2 * bytes_trained


def _configurations(model) -> Configurations | None:
    """Of a model in a directory, or on a hub; None where they are not in files of their own."""
    found = {}
    for name, kind in _CLASSES.items():
        try:
            config = kind.load_config(model, subfolder=name)
        except PPSD3Error:
            if name in ("transformer", "vae"):
                return None
        else:
            found[name] = kind.extract_init_arguments(config)
    return found


_COMMON: dict[str, Any] = {"model": "", "output": "", "gradient_checkpointing": True}
# Recipe -> its settings, in the words of a run's file.
RECIPES: dict[str, dict[str, Any]] = {
    "LoRA: `lora: {rank: 16}`": {"lora": {"rank": 16}},
    "the same, `weights: bfloat16`": {"lora": {"rank": 16}, "weights": "bfloat16"},
    "DreamBooth LoRA: `class_prompt`": {"lora": {"rank": 16}, "data": {"class_prompt": "a dog"}},
    "`method: controlnet`, 12 layers": {
        "method": "controlnet",
        "controlnet": {"num_layers": 12},
        "data": {"control_column": "edges"},
    },
    "`method: full`, `optimizer: adamw`": {"method": "full"},
    "`method: full`, `optimizer: adafactor`": {"method": "full", "training": {"optimizer": "adafactor"}},
    "`method: full`, with `ema_decay`": {"method": "full", "training": {"ema_decay": 0.999}},
}


def memory_table() -> list[str]:
    """Lines of a Markdown table: GB that each recipe takes for the published models, while training and at the peak.

    For 1024x1024 pixels, a batch of 1, 256 tokens of T5, with gradient checkpointing, in float32; counted.
    """
    lines = ["| | " + " | ".join(PUBLISHED) + " |", "|---" * (len(PUBLISHED) + 1) + "|"]
    for name, settings in RECIPES.items():
        data = {"path": "", **settings.get("data", {})}
        configuration = build(TrainConfiguration, {**_COMMON, **settings, "data": data}, name)
        found = [expected_memory(configuration, networks) for networks in PUBLISHED.values()]
        cells = [f"{one.while_training / 1e9:.0f} ({one.while_encoding / 1e9:.0f})" for one in found if one is not None]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


# ------------------------------------------------------------------------------------------------------------ measured


def _measured_elsewhere(configuration: TrainConfiguration) -> dict[str, Any]:
    """What :func:`measure` gives in a new process, where nothing else takes memory."""
    code = "from ppsd3.training.estimate import _answer; _answer()"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="ppsd3-estimate-") as directory:
        result = os.path.join(directory, "result.json")
        given = json.dumps({"configuration": dataclasses.asdict(configuration), "result": result})
        child = subprocess.run(
            [sys.executable, "-c", code],
            input=given,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        if not os.path.isfile(result):
            raise InputError(
                f"The measured steps ended with code {child.returncode}"
                + (" (killed, as where memory ends)" if child.returncode == -9 else "")
                + f": {child.stderr.strip()[-2000:]}"
            )
        answer = read_json(result, "what was measured")
    if "error" in answer:
        raise getattr(errors, answer["kind"], InputError)(answer["error"])
    return answer


def _answer() -> None:
    """The other process: reads a configuration from standard input and writes the result into a file."""
    given = parse_json_object(sys.stdin.read(), "standard input")
    try:
        answer = measure(build(TrainConfiguration, given["configuration"], "the settings"))
    except PPSD3Error as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    with atomic_write(given["result"]) as file:
        file.write(json.dumps(answer).encode())


def measure(configuration: TrainConfiguration) -> dict[str, Any]:
    """Memory by kind and seconds of a run, measured in a few steps by this process, which should be a new one.

    Returns:
        ``memory`` (arguments of :class:`Memory`), ``seconds_per_step`` and ``seconds_before``.
    """
    tune_process()
    base = peak_memory()
    once = dataclasses.replace(configuration.validation, num_inference_steps=1)
    with tempfile.TemporaryDirectory(prefix="ppsd3-estimate-") as directory:
        run = Rehearsal(dataclasses.replace(configuration, validation=once), directory)
        seconds_before = _encoding(run)
        if run.method.validates:
            run.validate(0)
        run.trainer.log.begin(0)
        run.trainer.save()
        before = peak_allocated_memory()
        seconds = run.train(2)  # the first one has what is done once
        kept = _Kept(run.task)
        seconds += run.train(1 if seconds[-1] > 60 else 4)
        activations = kept.after - kept.before
        if peak_allocated_memory() > before:  # otherwise something that came before needed more
            activations = max(activations, peak_allocated_memory() - kept.before)
        memory = _memory(run, activations, peak_memory() - base)
    return {
        "memory": dataclasses.asdict(memory),
        "seconds_per_step": statistics.median(seconds[1:]),
        "seconds_before": seconds_before,
    }


def _encoding(run):
    """Seconds that all captions and all variants of pictures will take, by those of the first batch."""
    if "batches" not in vars(run):  # a method that reads neither
        return 0.0
    data = run.whole.data
    start = time.perf_counter()
    run.batches.prepare()
    per_picture = (time.perf_counter() - start) / len(run.batches.samples)
    per_caption = run.seconds_of_texts / (len(run.batches.captions) + 1)
    variants = (2 if data.random_flip else 1) * (9 if data.random_crop else 1)
    return per_caption * len(run.captions) + per_picture * variants * len(run.samples)


class _Kept:
    """What tensors take before and after the loss of a batch is computed."""

    def __init__(self, task: Any) -> None:
        self.before: int = 0
        self.after: int = 0
        loss = task.loss

        def watched(*arguments):
            self.before = allocated_memory()
            result = loss(*arguments)
            self.after = allocated_memory()
            return result

        task.loss = watched


def _memory(run, activations, peak):
    """By kind: what can be counted is, and the rest of ``peak`` is the process's."""
    trainer, pipe = run.trainer, run.pipe
    trained = bytes_of(trainer.parameters)
    networks = [pipe.transformer, pipe.vae, *(getattr(pipe, name) for name in TOWERS)]
    there = {
        str(id(t)): t for n in [*networks, *run.task.layers.values()] if n is not None for t in n.state_dict().values()
    }
    memory = Memory(
        weights=bytes_of(there) - trained,
        masters=trained,
        gradients=trained,
        optimizer=bytes_of(trainer.optimizer.state()),
        ema=0 if trainer.ema is None else bytes_of(trainer.ema.shadow),
        activations=activations,
        before_training=run.bytes_of_texts,
    )
    return dataclasses.replace(memory, process=max(0, peak - memory.peak))


def peak_memory() -> int:
    """The most bytes that this process had: of a GPU if that is in use, else resident ones."""
    if paddle.get_device().split(":")[0] == "gpu":
        return peak_allocated_memory()
    return peak_resident_set()
