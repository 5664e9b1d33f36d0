"""Writes the networks of a pipeline as models for Paddle Inference: programs that draw without this package.

Each network becomes a static graph with open batch and size. What has to be known beside the graphs, tokenizers and
scheduler included, is in the directory too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import paddle
from paddle import nn
from paddle.static import InputSpec

from ..compilation import CompiledFunction
from ..serialization.combined import is_whole
from ..serialization.tensors import dtype_name
from ..serialization.writers import byte_size
from ..utils.errors import CheckpointFormatError, DiskError, InputError
from ..utils.files import atomic_write, replacing, require_space
from ..utils.interruption import interruptible
from ..utils.json_files import parse_json_object
from ..utils.paddle_internals import WRONG_PASSES, is_program
from ..utils.threads import works_with_networks
from ..utils.types import PathLike

if TYPE_CHECKING:
    from .stable_diffusion_3.base import StableDiffusion3Base

INDEX = "inference_index.json"
_STEM = "inference"
_PARTS = ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")


@dataclasses.dataclass
class Port:
    """An input or output of a model: -1 in ``shape`` is a size that may differ between calls."""

    name: str
    shape: list[int]
    dtype: str
    meaning: str


class Graph(NamedTuple):
    """A function of a network that becomes a model, with its inputs and outputs in their order."""

    function: Callable[..., Any]
    inputs: list[Port]
    outputs: list[Port]


@works_with_networks
def export_pipeline(pipe: StableDiffusion3Base, save_directory: PathLike) -> str:
    """Writes the networks of ``pipe`` as models for Paddle Inference, with active LoRAs in them.

    ``inference_index.json`` says which models there are, and name, shape, dtype and meaning of what they take and give.
    Tokenizers and scheduler are saved beside them. All is written under a temporary name beside ``save_directory`` and
    renamed at the end.

    Args:
        pipe: a pipeline of a task without a ControlNet; the models are the same for every task.
        save_directory: a new directory, an empty one, or one that an earlier export wrote, which is replaced.

    Returns:
        The absolute path of the directory.

    Raises:
        InputError: the directory has other files in it, or a component cannot be written as a model.
        CheckpointError: the disk has too little space, or could not be written.
    """
    target = check_target(save_directory)
    _check_components(pipe)
    with replacing(target, lambda path, new: True) as new, interruptible():
        index: dict[str, Any] = {**_facts(pipe), "models": {}}
        for name, graphs in _GRAPHS.items():
            if getattr(pipe, name, None) is not None:
                with pipe.using(name) as network, paddle.no_grad():
                    _check_network(name, network)
                    for model, graph in graphs(network).items():
                        index["models"][model] = _write(new, model, network, graph)
        for name in _PARTS:
            part = getattr(pipe, name, None)
            if part is not None:
                part.save_pretrained(os.path.join(new, name))
        with atomic_write(os.path.join(new, INDEX)) as file:
            file.write((json.dumps(index, indent=2) + "\n").encode())
    return target


def check_target(save_directory: PathLike) -> str:
    """The absolute path of a directory that an export may write.

    Raises:
        InputError: it may not: it is a file, or holds what is no export.
    """
    target = os.path.realpath(os.path.expanduser(os.fspath(save_directory)))
    if not os.path.lexists(target):
        parent = os.path.dirname(target)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"{target} cannot be made: {parent} is no directory that may be written. Choose another.")
        return target
    if not os.path.isdir(target):
        raise InputError(f"{target} is a file already. Models are written into a directory: choose another name.")
    if os.path.ismount(target) or os.path.samefile(target, os.getcwd()):
        raise InputError(
            f"{target} cannot be replaced by a directory that is complete, for it is "
            f"{'a mounted disk' if os.path.ismount(target) else 'the current directory'}. Name a directory in it."
        )
    if os.listdir(target) and not os.path.isfile(os.path.join(target, INDEX)):
        raise InputError(f"{target} has other files in it, and no {INDEX}. Name a new directory, or an empty one.")
    return target


def _check_components(pipe: StableDiffusion3Base) -> None:
    pipe._check_components("transformer", "scheduler", "vae")
    if getattr(pipe, "controlnet", None) is not None:
        raise InputError(
            "A ControlNet cannot be exported. Export the pipeline without: StableDiffusion3Pipeline.from_pipe(pipe)."
        )


def _check_network(name: str, network: Any) -> None:
    if getattr(network, "ip_adapter", None) is not None:
        raise InputError("The transformer's IP-adapter cannot be exported. Call unload_ip_adapter() first.")
    if getattr(network, "is_quantized", False) or getattr(network, "storage_dtype", None) is not None:
        raise InputError(
            f"{name} holds weights in int8, or in 16 bits that are cast when they are used, which a Paddle Inference "
            "model has no place for. Load it without quantize and storage_dtype."
        )


def _facts(pipe: StableDiffusion3Base) -> dict[str, Any]:
    """What a program has to know beside the models."""
    from .. import __version__

    config = pipe.transformer.config
    return {
        "ppsd3_version": __version__,
        "paddle_version": paddle.__version__,
        "patch_size": config.patch_size,
        "latent_channels": pipe.vae.config.latent_channels,
        "vae_scale_factor": pipe.vae_scale_factor,
        "default_size": pipe.default_sample_size * pipe.vae_scale_factor,
        "largest_size": config.pos_embed_max_size * config.patch_size * pipe.vae_scale_factor,
        "joint_attention_dim": config.joint_attention_dim,
        "pooled_projection_dim": config.pooled_projection_dim,
        "delete_passes": list(WRONG_PASSES),
    }


def _transformer(network: Any) -> dict[str, Graph]:
    config, dtype = network.config, dtype_name(network.dtype)
    latents = [-1, config.in_channels, -1, -1]
    inputs = [
        Port("hidden_states", latents, dtype, "noisy latents"),
        Port("encoder_hidden_states", [-1, -1, config.joint_attention_dim], dtype, "text tokens: both CLIPs, then T5"),
        Port("pooled_projections", [-1, config.pooled_projection_dim], dtype, "pooled text of both CLIPs"),
        Port("timestep", [-1], "float32", "0 to 1000"),
    ]

    def velocity(*tensors):
        return network(**dict(zip((port.name for port in inputs), tensors)), return_dict=False)[0]

    outputs = [Port("sample", [-1, network.out_channels, -1, -1], dtype, "the velocity")]
    return {"transformer": Graph(velocity, inputs, outputs)}


def _vae(network: Any) -> dict[str, Graph]:
    config, dtype = network.config, dtype_name(network.dtype)
    latents, pixels = [-1, config.latent_channels, -1, -1], [-1, config.in_channels, -1, -1]

    def decode(latents):
        return network.decode(network.unscale_latents(latents), return_dict=False)[0]

    def encode(pixels):
        posterior = network.encode(pixels, return_dict=False)[0]
        mean = network.scale_latents(posterior.mean)
        return mean, network.scale_latents(posterior.mean + posterior.std) - mean

    picture = [Port("sample", pixels, dtype, "picture, about -1 to 1")]
    known = "latents as the transformer knows them"
    posterior = [Port("mean", latents, dtype, known), Port("std", latents, dtype, "of noise that is added to the mean")]
    return {
        "vae_decoder": Graph(decode, [Port("latents", latents, dtype, known)], picture),
        "vae_encoder": Graph(encode, [Port("pixels", pixels, dtype, "picture, -1 to 1")], posterior),
    }


def _clip(name: str) -> Callable[[Any], dict[str, Graph]]:
    def graphs(network):
        config, dtype = network.config, dtype_name(network.dtype)
        length = config.max_position_embeddings

        def encode(input_ids):
            output = network(input_ids, output_hidden_states=True)
            return output.hidden_states[-2], output.text_embeds

        outputs = [
            Port("hidden_states", [-1, length, config.hidden_size], dtype, "tokens, of the layer before the last"),
            Port("text_embeds", [-1, config.projection_dim], dtype, "pooled text"),
        ]
        return {name: Graph(encode, [Port("input_ids", [-1, length], "int64", "of the tokenizer")], outputs)}

    return graphs


def _t5(network: Any) -> dict[str, Graph]:
    def encode(input_ids):
        return network(input_ids)[0]

    inputs = [Port("input_ids", [-1, -1], "int64", "of the tokenizer, at most 512 a row")]
    outputs = [Port("last_hidden_state", [-1, -1, network.config.d_model], dtype_name(network.dtype), "tokens")]
    return {"text_encoder_3": Graph(encode, inputs, outputs)}


# Component -> its models, smallest memory first.
_GRAPHS: dict[str, Callable[[Any], dict[str, Graph]]] = {
    "vae": _vae,
    "text_encoder": _clip("text_encoder"),
    "text_encoder_2": _clip("text_encoder_2"),
    "text_encoder_3": _t5,
    "transformer": _transformer,
}


def _write(directory: str, model: str, network: nn.Layer, graph: Graph) -> dict[str, Any]:
    """Writes one model; returns its entry in the index."""
    folder = os.path.join(directory, model)
    os.makedirs(folder)
    require_space(directory, sum(byte_size(parameter) for parameter in network.parameters()), folder)
    specs = [InputSpec(port.shape, getattr(paddle, port.dtype), name=port.name) for port in graph.inputs]
    weights = f"{_STEM}.pdiparams"
    CompiledFunction(network, graph.function, specs).save(os.path.join(folder, _STEM))
    (program,) = (name for name in os.listdir(folder) if name in (f"{_STEM}.json", f"{_STEM}.pdmodel"))
    # Paddle does not notice a full disk (3.3.1): a file ends where the disk did.
    if not (is_whole(os.path.join(folder, weights)) and _is_whole_program(os.path.join(folder, program))):
        place = os.path.dirname(directory)
        raise DiskError(
            f"The model {model} could not be written: the disk of {place} is full or broken "
            f"({shutil.disk_usage(place).free / 1e9:.3f} GB free). Free some space, or choose another directory."
        )
    return {
        "program": f"{model}/{program}",
        "weights": f"{model}/{weights}",
        "inputs": _described(graph.inputs),
        "outputs": _described(graph.outputs),
    }


def _is_whole_program(path: str) -> bool:
    """Whether the program at ``path`` can be read to its end."""
    with open(path, "rb") as file:
        content = file.read()
    if not path.endswith(".json"):
        return is_program(content)
    try:
        parse_json_object(content, path, CheckpointFormatError)
    except CheckpointFormatError:
        return False
    return True


def _described(ports: Sequence[Port]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(port) for port in ports]
