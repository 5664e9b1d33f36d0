"""Arguments of the public functions, methods and classes: one or two of a sound call take a value that does not fit."""

from __future__ import annotations

import inspect
import pathlib

import numpy as np
from helpers import ip_adapters, loras

from .. import corpus, mutation
from ..case import Case

_TOO_LARGE = (10**9, 2**31, 2**63, 10**30)
PLACE = "new"  # stands for a directory of the case
# Not what a directory to write into is: nothing is written where a text happens to point to.
_SKIPPED = ("callback_on_step_end", "save_directory", "target")


class Kind:
    def __init__(self, directory):
        self.calls = [call for call in _calls(directory) if _parameters(call[1])]

    def case(self, rng, place):
        label, function, sound = rng.choice(self.calls)
        names = _parameters(function)
        changed = {}
        for _ in range(rng.choice((1, 1, 1, 2))):
            changed[rng.choice(names)] = _value(rng)
        if rng.random() < 0.05:
            changed[mutation.text(rng) or "no_such_argument"] = 1
        arguments = sound() if callable(sound) else dict(sound)
        arguments = {name: place / value if value is PLACE else value for name, value in arguments.items()}
        arguments.update(changed)
        shown = {name: _show(value) for name, value in changed.items()}
        return Case(lambda: function(**arguments), tuple(changed), f"{label}({shown})")


def _show(value):
    shape = getattr(value, "shape", None)
    return (
        repr(value)[:80]
        if isinstance(value, type) or shape is None
        else f"{type(value).__name__} {list(shape)} {getattr(value, 'dtype', '')}"
    )


def _parameters(function):
    """Names that can be given; of a class those of its constructor."""
    signature = inspect.signature(function)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name for name, parameter in signature.parameters.items() if parameter.kind in kinds and name not in _SKIPPED
    ]


def _value(rng):
    """Something that hardly anything takes: of another type, shape or size."""
    import paddle
    from PIL import Image

    choice = rng.randrange(10)
    if choice < 2:
        return rng.choice((0, 1, -1, 2, -2, 3, *_TOO_LARGE, rng.choice(mutation.FLOATS), 0.5))
    if choice == 2:
        return mutation.text(rng)
    if choice == 3:
        return rng.choice(
            (None, True, False, object(), object, lambda *args, **options: None, b"abc", {1}, 1j, range(3), ...)
        )
    if choice == 4:
        return rng.choice(
            ([], {}, (), [None], [[]], ["a", 1], [1, 2, 3], {"a": 1}, [float("nan")], [1e9] * 3, [True], {1: 2})
        )
    if choice == 5:
        scalar = rng.choice(
            (np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.array(2), np.str_("a"))
        )
        return rng.choice(
            (scalar, np.array([1, 2]), np.zeros((0, 3)), np.array(["a"]), np.array([None]), np.full((4, 4, 3), np.nan))
        )
    if choice == 6:
        shape = rng.choice(([1], [0, 4], [1, 4, 2, 2], [1, 4, 4, 4], [2, 3, 16, 16], [1, 77, 40], [1, 28], [1] * 7, []))
        tensor = paddle.full(shape, rng.choice((0.5, float("nan"), float("inf"))))
        return tensor.astype(rng.choice(("float32", "float64", "int64", "bool", "float16")))
    if choice == 7:
        mode, size = (
            rng.choice(("RGB", "L", "1", "P", "RGBA", "I;16", "F", "CMYK", "LAB")),
            rng.choice(((16, 16), (1, 1), (40, 8))),
        )
        image = Image.new(mode, size)
        return rng.choice((image, [image], [image, None], (image, image)))
    if choice == 8:
        return rng.choice(
            (
                np.random.default_rng(0),
                paddle.float32,
                np.float32,
                Exception("a"),
                pathlib.Path("/etc/passwd"),
                {"scale": "a"},
            )
        )
    return mutation.value(rng)


def _calls(directory):
    """[(label, function, its sound arguments, or a function that makes them)]."""
    import ppsd3
    from ppsd3 import schedulers
    from ppsd3.utils.images import load_image, make_image_grid

    model = directory / "model"
    pipe = corpus.pipeline(model)
    networks = corpus.networks()
    calls = [(f"{type(task).__name__}.__call__", task.__call__, sound) for task, sound in _tasks(pipe)] * 4
    calls += [
        ("encode_prompt", pipe.encode_prompt, {"prompt": "a", "prompt_2": None, "prompt_3": None}),
        ("from_pretrained", ppsd3.StableDiffusion3Pipeline.from_pretrained, {"pretrained_model_name_or_path": model}),
        (
            "from_pretrained",
            ppsd3.AutoencoderKL.from_pretrained,
            {"pretrained_model_name_or_path": model, "subfolder": "vae"},
        ),
        (
            "from_pretrained",
            ppsd3.CLIPTokenizer.from_pretrained,
            {"pretrained_model_name_or_path": model, "subfolder": "tokenizer"},
        ),
        ("save_pretrained", networks["vae"].save_pretrained, {"save_directory": PLACE}),
        ("save_pretrained", pipe.save_pretrained, {"save_directory": PLACE}),
        ("convert", ppsd3.convert, {"source": model / "vae", "target": PLACE}),
        ("from_pipe", ppsd3.StableDiffusion3Pipeline.from_pipe, {"pipeline": pipe}),
        ("load_image", load_image, lambda: {"image": _picture()}),
        ("make_image_grid", make_image_grid, lambda: {"images": [_picture()] * 2, "rows": 1, "cols": 2}),
        ("TorchGenerator", ppsd3.TorchGenerator, {"seed": 1}),
        ("TorchGenerator.randn", ppsd3.TorchGenerator(0).randn, {"shape": [2]}),
        ("VaeImageProcessor", ppsd3.VaeImageProcessor, {}),
        (
            "VaeImageProcessor.preprocess",
            ppsd3.VaeImageProcessor().preprocess,
            lambda: {"image": _picture(), "height": 16, "width": 16},
        ),
        (
            "VaeImageProcessor.postprocess",
            ppsd3.VaeImageProcessor().postprocess,
            lambda: {"image": _tensor([1, 3, 8, 8])},
        ),
        (
            "SiglipImageProcessor",
            ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR).__call__,
            lambda: {"images": _picture()},
        ),
        ("CLIPTokenizer.__call__", pipe.tokenizer.__call__, {"text": "a"}),
        ("T5Tokenizer.__call__", pipe.tokenizer_3.__call__, {"text": "a"}),
        ("decode", pipe.tokenizer.decode, {"ids": [1, 2]}),
        ("LatentPreview", ppsd3.LatentPreview, {}),
        ("PromptCache", ppsd3.PromptCache, {}),
        ("WeightedPrompts", ppsd3.WeightedPrompts, {}),
        ("LoraConfig", ppsd3.LoraConfig, {}),
        ("TaylorCache", ppsd3.TaylorCache, {}),
        ("EasyCache", ppsd3.EasyCache, {}),
        ("FirstBlockCache", ppsd3.FirstBlockCache, {}),
        ("vae.decode", networks["vae"].decode, lambda: {"z": _tensor([1, 4, 4, 4])}),
        ("vae.encode", networks["vae"].encode, lambda: {"x": _tensor([1, 3, 8, 8])}),
    ]
    calls += _adapters(corpus.pipeline())
    guidances = (
        "ClassifierFreeGuidance",
        "ClassifierFreeZeroStarGuidance",
        "AdaptiveProjectedGuidance",
        "GuidanceInterval",
    )
    guidances += ("GuidanceRescale", "PerturbedAttentionGuidance")
    calls += [(name, getattr(ppsd3, name), {}) for name in guidances]
    calls += [("SkipLayerGuidance", ppsd3.SkipLayerGuidance, {"base": 5.0, "layers": [0]})]
    calls += [(type(network).__name__, type(network), dict(network.config)) for network in networks.values()]
    for name in [name for name in schedulers.__all__ if "Discrete" in name or "Multistep" in name or "LCM" in name]:
        class_ = getattr(schedulers, name)
        calls += [(name, class_, {}), (f"{name}.set_timesteps", class_().set_timesteps, {"num_inference_steps": 2})]
        calls += [(f"{name}.step", *_step(class_))]
    return calls


def _tasks(pipe):
    """(pipeline, its sound arguments) for each task."""
    import ppsd3

    small = {"prompt": "a", "output_type": "latent", **corpus.SMALL_CALL}
    image = {"image": _picture()}
    net = ppsd3.SD3ControlNetModel.from_transformer(pipe.transformer, num_layers=1)
    control = {"control_image": _picture(), "controlnet_conditioning_scale": 0.5}
    inpainting = ppsd3.SD3ControlNetModel.from_transformer(
        pipe.transformer, num_layers=1, num_extra_conditioning_channels=1
    )
    tasks = (
        (ppsd3.StableDiffusion3Pipeline, {}, {}),
        (ppsd3.StableDiffusion3Img2ImgPipeline, {}, {**image, "strength": 0.9, "num_inference_steps": 2}),
        (
            ppsd3.StableDiffusion3InpaintPipeline,
            {},
            {**image, "mask_image": _picture(), "strength": 0.9, "num_inference_steps": 2},
        ),
        (ppsd3.StableDiffusion3PAGPipeline, {}, {}),
        (ppsd3.StableDiffusion3PAGImg2ImgPipeline, {}, {**image, "strength": 0.9, "num_inference_steps": 2}),
        (ppsd3.StableDiffusion3ControlNetPipeline, {"controlnet": net}, control),
        (
            ppsd3.StableDiffusion3ControlNetImg2ImgPipeline,
            {"controlnet": net},
            {**control, **image, "strength": 0.9, "num_inference_steps": 2},
        ),
        (
            ppsd3.StableDiffusion3ControlNetInpaintingPipeline,
            {"controlnet": inpainting},
            {**control, "control_mask": _picture()},
        ),
    )
    for class_, parts, own in tasks:
        pag = {"pag_applied_layers": "blocks.0"} if "PAG" in class_.__name__ else {}
        task = class_.from_pipe(pipe, **parts, **pag)
        task.set_progress_bar_config(disable=True)
        yield task, {**small, **own}


def _picture():
    from PIL import Image

    return Image.new("RGB", (16, 16), (200, 100, 50))


def _tensor(shape):
    import paddle

    return paddle.full(shape, 0.5)


def _step(class_):
    scheduler = class_()

    def step(model_output, timestep, sample, **options):
        scheduler.set_timesteps(2)
        return scheduler.step(model_output, scheduler.timesteps[0] if timestep is None else timestep, sample, **options)

    return step, lambda: {"model_output": _tensor([1, 4, 2, 2]), "timestep": None, "sample": _tensor([1, 4, 2, 2])}


def _like(method, function):
    """``function`` with the parameters of ``method``."""
    function.__signature__ = inspect.signature(method)
    return function


def _adapters(pipe):
    """Calls about adapters and words, each with a pipeline that has none but what they need."""

    def emptied(loaded=True):
        pipe.unload_lora_weights()
        if loaded:
            pipe.load_lora_weights(tensors, adapter_name="a")
        return pipe

    def fuse(**arguments):
        try:
            emptied().fuse_lora(**arguments)
        finally:
            pipe.unfuse_lora()

    def learn(**arguments):
        try:
            pipe.load_textual_inversion(**arguments)
        finally:
            if pipe.tokenizer.added_tokens or pipe.tokenizer_2.added_tokens:
                pipe.unload_textual_inversion()

    tensors = loras.for_pipeline(pipe)
    word = {"pretrained_model_name_or_path": np.ones((1, 16), np.float32), "token": "<a>"}
    layers = {"transformer_blocks.0.attn.to_q.lora_A.weight": _tensor([2, 32])}
    layers["transformer_blocks.0.attn.to_q.lora_B.weight"] = _tensor([32, 2])
    calls = (
        (
            pipe.load_lora_weights,
            lambda **options: emptied(False).load_lora_weights(**options),
            {"pretrained_model_name_or_path_or_dict": tensors},
        ),
        (
            pipe.set_adapters,
            lambda **options: emptied().set_adapters(**options),
            {"adapter_names": "a", "adapter_weights": 0.5},
        ),
        (pipe.delete_adapters, lambda **options: emptied().delete_adapters(**options), {"adapter_names": "a"}),
        (pipe.fuse_lora, fuse, {"lora_scale": 0.5}),
        (pipe.load_textual_inversion, learn, word),
        (
            type(pipe).save_lora_weights,
            type(pipe).save_lora_weights,
            {"save_directory": PLACE, "transformer_lora_layers": layers},
        ),
    )
    return [
        (method.__name__, function if function == method else _like(method, function), sound)
        for method, function, sound in calls
    ]
