"""Rivals on torch: diffusers and transformers, eager and compiled."""

# The rivals' libraries may be absent, and their annotations do not fit their own use.
# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from .base import Side


class TorchSide(Side):
    """diffusers (transformers, for the text towers) in float32.

    Args:
        compiled: whether networks go through ``torch.compile``.
        channels_last: whether the VAE's tensors have that memory format.
    """

    workspace: str
    grad: Callable[[], Any]

    bare = True
    packages: dict[str, str] = {"torch": "torch", "diffusers": "diffusers", "transformers": "transformers"}

    def __init__(
        self, name: str, bench: Any, compiled: bool = False, channels_last: bool = False, **options: Any
    ) -> None:
        super().__init__(name, bench, **options)
        self.compiled: bool = compiled
        self.channels_last: bool = channels_last

    def setup(self, workspace: str) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.workspace = workspace
        self.grad = contextlib.nullcontext if self.bench.task == "train" else torch.inference_mode
        self.call: Callable[..., Any] = TASKS[self.bench.task](self)

    def warm_up(self) -> None:
        with self.grad():
            super().warm_up()

    def run(self) -> Any:
        with self.grad():
            return super().run()

    def arrays(self, result: Any) -> Iterator[tuple[str, np.ndarray]]:
        for name, value in result.items():
            yield name, value.detach().numpy() if hasattr(value, "detach") else value

    def load(self, component: str) -> Any:
        """The bench's ``component``, compiled if this side is."""
        model = load_component(self.bench.folder(self.workspace, component), component)
        return self.finish(model)

    def finish(self, model: Any) -> Any:
        """``model`` in this side's memory format, compiled if this side is."""
        import torch

        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return torch.compile(model, dynamic=False) if self.compiled else model

    def tensors(self) -> dict[str, Any]:
        """The bench's inputs."""
        return torch_inputs(self.bench)

    def trained(self, module: Any) -> dict[str, Any]:
        """What of ``module`` is trained, by name: all."""
        return dict(module.named_parameters())


class TorchLoraSide(TorchSide):
    """Trains a LoRA beside frozen weights, by PEFT."""

    packages: dict[str, str] = {**TorchSide.packages, "peft": "peft"}

    def trained(self, module: Any) -> dict[str, Any]:
        """The LoRA's weights, by names without the adapter's."""
        import torch
        from peft import LoraConfig

        rank, targets = self.bench.rank, list(self.bench.targets)
        module.requires_grad_(False)
        module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        found = {n.replace(".default.weight", ""): p for n, p in module.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in found.items():
                parameter.copy_(torch.from_numpy(self.bench.lora_weight(name, parameter.shape)))
        return found


def load_component(folder: str, component: str) -> Any:
    """A component as diffusers or transformers load it, in float32, in evaluation mode."""
    import torch

    return component_class(component).from_pretrained(folder, torch_dtype=torch.float32).eval()


def component_class(component: str) -> Any:
    """The class of a component in diffusers or transformers; importing it takes longer than some benches."""
    import importlib

    from ..configurations import CLASSES

    library = "transformers" if component.startswith("text_encoder") else "diffusers"
    return getattr(importlib.import_module(library), CLASSES[component])


def torch_inputs(bench: Any) -> dict[str, Any]:
    """The bench's inputs as torch tensors."""
    import torch

    return {name: torch.from_numpy(array) for name, array in bench.inputs().items()}


def _step(side):
    model, inputs = side.load("transformer"), side.tensors()
    return lambda: {"velocity": model(**inputs, return_dict=False)[0]}


def _vae(side):
    """(encoder, decoder) of the VAE."""
    vae = load_component(side.bench.folder(side.workspace, "vae"), "vae")
    return side.finish(vae.encoder), side.finish(vae.decoder)


def _placed(side, tensor):
    import torch

    return tensor.to(memory_format=torch.channels_last) if side.channels_last else tensor


def _decode(side):
    (_, decoder), latents = _vae(side), _placed(side, side.tensors()["latents"])
    return lambda: {"picture": decoder(latents)}


def _encode(side):
    (encoder, _), picture = _vae(side), _placed(side, side.tensors()["picture"])
    return lambda: {"latents": encoder(picture).chunk(2, dim=1)[0]}  # the mean, which is the posterior's mode


def _text(side):
    inputs = side.tensors()
    towers = {name: side.load(name) for name in inputs}

    def encode():
        clips = {name: towers[name](inputs[name], output_hidden_states=True) for name in list(inputs)[:2]}
        embeds = {f"{name}.text_embeds": output.text_embeds for name, output in clips.items()}
        hidden = {f"{name}.hidden_states": output.hidden_states[-2] for name, output in clips.items()}
        t5 = towers["text_encoder_3"](inputs["text_encoder_3"]).last_hidden_state
        return {**embeds, **hidden, "text_encoder_3": t5}

    return encode


def _load(side):
    folder = side.bench.folder(side.workspace, "transformer")
    component_class("transformer")  # imports are no part of loading
    side.bench.settle(side.workspace)
    return lambda: dict(load_component(folder, "transformer").state_dict())


def _picture(side):
    import diffusers

    folders = {name: side.bench.folder(side.workspace, name) for name in ("transformer", "vae")}
    parts = {name: load_component(folder, name) for name, folder in folders.items()}
    pipe = diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **parts,
        **dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.forward = side.finish(pipe.transformer).forward
    pipe.vae.decoder = side.finish(pipe.vae.decoder)
    inputs, call = side.tensors(), side.bench.call

    def draw(steps=side.bench.steps):
        last = {}
        picture = pipe(
            **inputs,
            **call,
            num_inference_steps=steps,
            callback_on_step_end=lambda pipe, i, t, tensors: last.update(tensors) or tensors,
        ).images
        return {"latents": last["latents"], "picture": picture}

    return draw


def _train(side):
    import torch
    import torch.nn.functional as F

    module = load_component(side.bench.folder(side.workspace, "transformer"), "transformer").train()
    weights = side.trained(module)
    model, inputs = side.finish(module), side.tensors()
    target = inputs.pop("target")
    # fused: torch's fastest on the CPU
    optimizer = torch.optim.AdamW(list(weights.values()), lr=side.bench.learning_rate, weight_decay=0.01, fused=True)

    def step():
        optimizer.zero_grad()
        loss = F.mse_loss(model(**inputs, return_dict=False)[0], target)
        loss.backward()
        optimizer.step()
        return {"loss": loss, **{f"gradient of {name}": weights[name].grad for name in side.bench.watched}}

    return step


TASKS: dict[str, Callable[..., Any]] = {
    "step": _step,
    "decode": _decode,
    "encode": _encode,
    "text": _text,
    "load": _load,
    "picture": _picture,
    "train": _train,
}


class TorchGemm(Side):
    """float32 matrix products of the model's shapes by torch."""

    bare = roofline = True
    packages: dict[str, str] = {"torch": "torch"}

    def setup(self, workspace: str) -> None:
        import torch

        torch.set_num_threads(self.threads)
        pairs = [(torch.randn(m, k), torch.randn(n, k)) for m, k, n in self.bench.gemms]

        def multiply():
            with torch.inference_mode():
                for x, weight in pairs:
                    torch.nn.functional.linear(x, weight)

        self.call = multiply

    def warm_up(self) -> None:
        self.call()
