"""ppsd3's own sides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import numpy as np

from .base import Side


class PaddleSide(Side):
    """ppsd3 in one of its variants.

    Args:
        native: whether to use native kernels; False is as on a machine without a compiler.
        method: name and arguments of a method of the pipeline to call first, e.g. ``("quantize", "int8")``.
    """

    workspace: str
    grad: Callable[[], Any]

    ours = True

    def __init__(
        self, name: str, bench: Any, native: bool = True, method: tuple[str, ...] | None = None, **options: Any
    ) -> None:
        super().__init__(name, bench, **options)
        self.native: bool = native
        self.method: tuple[str, ...] | None = method

    def missing(self) -> str:
        from ...pipelines import StableDiffusion3Pipeline

        if self.method and not hasattr(StableDiffusion3Pipeline, self.method[0]):
            return f"this ppsd3 has no pipe.{self.method[0]}()"
        return super().missing()

    def setup(self, workspace: str) -> None:
        import paddle

        from ...ops import use_native
        from ...utils.device import tune_process
        from ...utils.paddle_internals import set_num_threads

        tune_process()
        set_num_threads(self.threads)
        use_native(self.native)
        self.workspace = workspace
        self.grad = contextlib.nullcontext if self.bench.task == "train" else paddle.no_grad
        with self.grad():
            self.call: Callable[..., Any] = TASKS[self.bench.task](self)

    def warm_up(self) -> None:
        with self.grad():
            super().warm_up()

    def run(self) -> Any:
        with self.grad():
            return super().run()

    def arrays(self, result: Any) -> Iterator[tuple[str, np.ndarray]]:
        for name, value in result.items():
            yield name, value.numpy() if hasattr(value, "numpy") else value

    def load(self, component: str, finished: bool = True) -> Any:
        """The bench's ``component`` in float32, after :attr:`method` if ``finished``."""
        model = component_class(component).from_pretrained(self.bench.folder(self.workspace, component))
        return self.finish(**{component: model})[component] if finished else model

    def finish(self, **components: Any) -> dict[str, Any]:
        """``components`` after the pipeline's :attr:`method`."""
        if not self.method:
            return components
        pipe = make_pipeline(**components)
        getattr(pipe, self.method[0])(*self.method[1:])
        return {name: getattr(pipe, name) for name in components}

    def tensors(self) -> dict[str, Any]:
        """The bench's inputs."""
        import paddle

        return {name: paddle.to_tensor(array) for name, array in self.bench.inputs().items()}

    def trained(self, model: Any) -> dict[str, Any]:
        """What of ``model`` is trained, by name: all."""
        return dict(model.named_parameters())


class PaddleLoraSide(PaddleSide):
    """Trains a LoRA beside frozen weights."""

    def trained(self, model: Any) -> dict[str, Any]:
        """The LoRA's weights, by names without the adapter's."""
        from ...adapters import LoraConfig

        rank, targets = self.bench.rank, list(self.bench.targets)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        found = {n.replace(".adapters.default", ""): p for n, p in model.named_parameters() if not p.stop_gradient}
        for name, parameter in found.items():
            parameter.set_value(self.bench.lora_weight(name, parameter.shape))
        return found


def component_class(component: str) -> Any:
    """The class of a component."""
    from ... import models, transformers
    from ..configurations import CLASSES

    return getattr(transformers if component.startswith("text_encoder") else models, CLASSES[component])


def make_pipeline(**components: Any) -> Any:
    """A pipeline with only these components."""
    import inspect

    from ...pipelines import StableDiffusion3Pipeline

    names = [name for name in inspect.signature(StableDiffusion3Pipeline.__init__).parameters if name != "self"]
    pipe = StableDiffusion3Pipeline(**{**dict.fromkeys(names), **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _step(side):
    model, inputs = side.load("transformer"), side.tensors()
    return lambda: {"velocity": model(**inputs, return_dict=False)[0]}


def _decode(side):
    vae, latents = side.load("vae"), side.tensors()["latents"]
    return lambda: {"picture": vae.decode(latents).sample}


def _encode(side):
    vae, picture = side.load("vae"), side.tensors()["picture"]
    return lambda: {"latents": vae.encode(picture).latent_dist.mode()}


def _text(side):
    inputs = side.tensors()
    towers = side.finish(**{name: side.load(name, finished=False) for name in inputs})

    def encode():
        clips = {name: towers[name](inputs[name], output_hidden_states=True) for name in list(inputs)[:2]}
        embeds = {f"{name}.text_embeds": output.text_embeds for name, output in clips.items()}
        hidden = {f"{name}.hidden_states": output.hidden_states[-2] for name, output in clips.items()}
        t5 = towers["text_encoder_3"](inputs["text_encoder_3"]).last_hidden_state
        return {**embeds, **hidden, "text_encoder_3": t5}

    return encode


def _load(side):
    folder, model_class = side.bench.folder(side.workspace, "transformer"), component_class("transformer")
    side.bench.settle(side.workspace)
    return lambda: dict(model_class.from_pretrained(folder, paddle_dtype="float32").state_dict())


def _picture(side):
    from ...schedulers import FlowMatchEulerDiscreteScheduler

    parts = side.finish(**{name: side.load(name, finished=False) for name in ("transformer", "vae")})
    pipe = make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **parts)
    inputs, call = side.tensors(), side.bench.call

    def draw(steps=side.bench.steps):
        last = {}
        picture = pipe(
            **inputs,
            **call,
            num_inference_steps=steps,
            callback_on_step_end=lambda pipe, i, t, tensors: last.update(tensors),
        ).images
        return {"latents": last["latents"], "picture": picture}

    return draw


def _train(side):
    import paddle
    import paddle.nn.functional as F

    model, inputs = side.load("transformer"), side.tensors()
    target = inputs.pop("target")
    trained = side.trained(model)
    model.train()
    optimizer = paddle.optimizer.AdamW(
        learning_rate=side.bench.learning_rate, parameters=list(trained.values()), weight_decay=0.01
    )

    def step():
        optimizer.clear_grad()
        loss = F.mse_loss(model(**inputs, return_dict=False)[0], target)
        loss.backward()
        optimizer.step()
        return {"loss": loss, **{f"gradient of {name}": trained[name].grad for name in side.bench.watched}}

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


class PaddleGemm(Side):
    """float32 matrix products of the model's shapes: Paddle's own, or those of the native kernels."""

    roofline = True

    def __init__(self, name: str, bench: Any, native: bool) -> None:
        super().__init__(name, bench)
        self.native = native

    def setup(self, workspace: str) -> None:
        import paddle

        from ...ops import linear, use_native
        from ...utils.device import tune_process
        from ...utils.paddle_internals import set_num_threads

        tune_process()
        set_num_threads(self.threads)
        use_native(self.native)
        pairs = [(paddle.randn([m, k]), paddle.randn([n, k])) for m, k, n in self.bench.gemms]

        def multiply():
            with paddle.no_grad():
                for x, weight in pairs:
                    linear(x, weight)

        self.call = multiply

    def warm_up(self) -> None:
        self.call()
