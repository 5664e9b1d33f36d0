"""Rivals on OpenVINO: the networks of diffusers and transformers, converted; in float32, or to int8 by NNCF."""

# The rivals' libraries may be absent, and their annotations do not fit their own use.
# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from .base import Side
from .torch_based import load_component, torch_inputs

_CALIBRATION_TIMES = (30.0, 200.0, 400.0, 600.0, 800.0, 900.0, 960.0, 1000.0)


class OpenVinoSide(Side):
    """The same networks in OpenVINO, on as many threads; static shapes, which are its fastest."""

    bare = True

    @property
    def packages(self) -> dict[str, str]:
        """See :class:`Side`."""
        needed = {"openvino": "openvino", "torch": "torch", "diffusers": "diffusers", "transformers": "transformers"}
        return {**needed, "nncf": "nncf"} if self.int8 else needed

    def prepare(self, workspace: str) -> None:
        """Converts the networks once: using them needs neither torch nor its memory."""
        import openvino
        import torch

        with torch.inference_mode():
            for name, (module, inputs) in NETWORKS[self.bench.task](self.bench, workspace).items():
                model = openvino.convert_model(module.eval(), example_input=inputs)
                for port, tensor in zip(model.inputs, _in_order(model, inputs)):
                    port.get_node().set_partial_shape(openvino.PartialShape(list(tensor.shape)))
                model.validate_nodes_and_infer_types()
                if self.int8 and name not in ("decoder", "encoder"):
                    model = _quantized(model, inputs)
                openvino.save_model(model, self._file(workspace, name), compress_to_fp16=False)

    def setup(self, workspace: str) -> None:
        import openvino

        core = openvino.Core()
        options = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
        }
        folder = os.path.dirname(self._file(workspace, ""))
        models = {
            name[: -len(".xml")]: core.compile_model(core.read_model(os.path.join(folder, name)), "CPU", options)
            for name in os.listdir(folder)
            if name.endswith(".xml")
        }
        self.call: Callable[..., Any] = TASKS[self.bench.task](self.bench, models)

    def arrays(self, result: Any) -> Iterator[tuple[str, np.ndarray]]:
        yield from result.items()

    def _file(self, workspace, name):
        folder = os.path.join(workspace, self.bench.key(), self.name)
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, name + ".xml")


def _in_order(model, inputs):
    """The tensors of ``inputs`` in the order of the model's ports, which may have lost their names."""
    named = [next((name for name in port.names if name in inputs), None) for port in model.inputs]
    return list(inputs.values()) if None in named else [inputs[name] for name in named]


def _quantized(model, inputs):
    import nncf

    samples = [[tensor.numpy() for tensor in _in_order(model, sample)] for sample in _calibration(inputs)]
    return nncf.quantize(model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))


def _calibration(inputs):
    """``inputs`` at several timesteps, whose activations have different ranges; text encoders' inputs as they are."""
    if "timestep" not in inputs:
        return [inputs]
    return [{**inputs, "timestep": inputs["timestep"] * 0 + time} for time in _CALIBRATION_TIMES]


def _transformer(bench, workspace):
    """The step's network and inputs; of a picture, those of its guidance batch."""
    import torch

    class Velocity(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = load_component(bench.folder(workspace, "transformer"), "transformer")

        def forward(self, hidden_states, encoder_hidden_states, pooled_projections, timestep):
            return self.model(hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False)[0]

    return {"transformer": (Velocity(), {name: torch.from_numpy(x) for name, x in bench.step_inputs().items()})}


def _vae(bench, workspace, part):
    import torch

    vae = load_component(bench.folder(workspace, "vae"), "vae")
    return {part: (getattr(vae, part), {"sample": torch.from_numpy(bench.vae_input())})}


def _towers(bench, workspace):
    import torch

    class Tower(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.model = load_component(bench.folder(workspace, name), name)
            self.is_clip = name != "text_encoder_3"

        def forward(self, input_ids):
            if not self.is_clip:
                return self.model(input_ids).last_hidden_state
            output = self.model(input_ids, output_hidden_states=True)
            return output.text_embeds, output.hidden_states[-2]

    return {name: (Tower(name), {"input_ids": ids}) for name, ids in torch_inputs(bench).items()}


NETWORKS: dict[str, Callable[..., dict[str, Any]]] = {
    "step": _transformer,
    "decode": lambda bench, workspace: _vae(bench, workspace, "decoder"),
    "encode": lambda bench, workspace: _vae(bench, workspace, "encoder"),
    "text": _towers,
    "picture": lambda bench, workspace: {
        **_transformer(bench, workspace),
        **_vae(bench, workspace, "decoder"),
    },
}


def _caller(model):
    """``model`` as a function of a dict of arrays that returns its outputs; the arrays are not copied."""
    request = model.create_infer_request()
    names = [next(iter(port.names), None) for port in model.inputs]

    def call(inputs):
        ordered = inputs if set(names) == set(inputs) else list(inputs.values())
        return list(request.infer(ordered, share_inputs=True).values())

    return call


def _run_step(bench, models):
    velocity, inputs = _caller(models["transformer"]), bench.inputs()
    return lambda: {"velocity": velocity(inputs)[0]}


def _run_decode(bench, models):
    decoder, inputs = _caller(models["decoder"]), {"sample": bench.vae_input()}
    return lambda: {"picture": decoder(inputs)[0]}


def _run_encode(bench, models):
    encoder, inputs = _caller(models["encoder"]), {"sample": bench.vae_input()}

    def encode():
        moments = encoder(inputs)[0]
        return {"latents": moments[:, : moments.shape[1] // 2]}

    return encode


def _run_text(bench, models):
    inputs = bench.inputs()
    towers = {name: _caller(models[name]) for name in inputs}

    def encode():
        found = {}
        for name, ids in inputs.items():
            outputs = towers[name]({"input_ids": ids})
            names = [name] if len(outputs) == 1 else [f"{name}.text_embeds", f"{name}.hidden_states"]
            found.update(zip(names, outputs))
        return found

    return encode


def _run_picture(bench, models):
    """The sampling loop: diffusers' pipeline cannot run OpenVINO's networks."""
    import numpy as np

    velocity, decoder = _caller(models["transformer"]), _caller(models["decoder"])
    inputs, vae = bench.inputs(), bench.configuration["vae"]
    embeds = np.concatenate([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])
    pooled = np.concatenate([inputs["negative_pooled_prompt_embeds"], inputs["pooled_prompt_embeds"]])

    def draw(steps=bench.steps):
        latents = inputs["latents"].copy()
        sigmas = _sigmas(steps)
        for sigma, following in zip(sigmas, sigmas[1:]):
            both = {
                "hidden_states": np.concatenate([latents, latents]),
                "encoder_hidden_states": embeds,
                "pooled_projections": pooled,
                "timestep": np.full(2, sigma * 1000, np.float32),
            }
            negative, positive = velocity(both)[0]
            guided = negative + bench.call["guidance_scale"] * (positive - negative)
            latents = latents + np.float32(following - sigma) * guided
        scaled = latents / np.float32(vae["scaling_factor"]) + np.float32(vae["shift_factor"])
        picture = decoder({"sample": scaled})[0]
        return {"latents": latents, "picture": (picture / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)}

    return draw


def _sigmas(steps, shift=3.0):
    """float32 [steps + 1], as in FlowMatchEulerDiscreteScheduler(shift=3.0), which shifts its smallest sigma twice."""
    import numpy as np

    def shifted(sigma):
        return shift * sigma / (1 + (shift - 1) * sigma)

    return np.append(shifted(np.linspace(1, shifted(1 / 1000), steps)), 0).astype(np.float32)


TASKS: dict[str, Callable[..., Any]] = {
    "step": _run_step,
    "decode": _run_decode,
    "encode": _run_encode,
    "text": _run_text,
    "picture": _run_picture,
}
