"""Arguments of the public functions, methods and classes: one or two of a sound call take a value that does not fit."""

from __future__ import annotations

import inspect
import pathlib

import numpy as np
from helpers import ip_adapters, loras, tiny

from .. import corpus, mutation
from ..case import Case

_TOO_LARGE = (10**9, 2**31, 2**63, 10**30)
PLACE = "new"  # stands for a directory of the case
# Not what a directory to write into is: nothing is written where a text happens to point to.
_SKIPPED = ("callback_on_step_end", "save_directory", "target")
# Methods of networks that paddle.jit.to_static has to read as they are written: of a name that they do not have Python
# itself says so, and names it.
_PLAIN = ("AutoencoderKL.decode", "AutoencoderKL.encode")


class Kind:
    def __init__(self, directory):
        self.calls = _calls(directory)

    def case(self, rng, place):
        label, function, sound = rng.choice(self.calls)
        names = _parameters(function) or list(sound)
        changed = {}
        for _ in range(rng.choice((1, 1, 1, 2))):
            changed[rng.choice(names)] = _value(rng)
        if rng.random() < 0.05 and label not in _PLAIN:
            changed[mutation.text(rng) or "no_such_argument"] = 1
        arguments = sound() if callable(sound) else dict(sound)
        arguments = {name: place / value if value is PLACE else value for name, value in arguments.items()}
        arguments.update(changed)
        shown = {name: _show(value) for name, value in changed.items()}
        # A path may be named itself.
        paths = {str(value) for value in changed.values() if isinstance(value, (str, pathlib.Path))} - {""}
        paths |= {" ".join(path.split()) for path in paths if path.strip()}
        paths |= {key for value in changed.values() if isinstance(value, dict) for key in value if isinstance(key, str)}
        names = (*changed, *paths - {""}, "The dict", "The tensor", f"{label} takes")
        return Case(lambda: function(**arguments), names, f"{label}({shown})")


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
    from ppsd3.utils.images import load_image, make_image_grid

    model, whole = directory / "model", directory / "whole.safetensors"
    pipe, networks = corpus.pipeline(model), corpus.networks()
    ppsd3.convert(model, whole)
    path = "pretrained_model_name_or_path"
    calls = [(f"{type(task).__name__}.__call__", task.__call__, sound) for task, sound in _tasks(pipe)] * 6
    calls += [
        ("encode_prompt", pipe.encode_prompt, {"prompt": "a", "prompt_2": None, "prompt_3": None}),
        ("from_pipe", ppsd3.StableDiffusion3Pipeline.from_pipe, {"pipeline": pipe}),
        ("enable_cache", pipe.enable_cache, {"cache": None}),
        ("enable_prompt_cache", pipe.enable_prompt_cache, {"cache": None}),
        ("set_ip_adapter_scale", pipe.set_ip_adapter_scale, {"scale": 0.5}),
        ("VaeImageProcessor", ppsd3.VaeImageProcessor, {}),
        ("SD3CannyImageProcessor", ppsd3.SD3CannyImageProcessor, {"vae_scale_factor": 8, "do_resize": True}),
        ("LoraConfig", ppsd3.LoraConfig, {"r": 4, "lora_alpha": 8, "target_modules": ["to_q"], "use_dora": False}),
        ("LoKrConfig", ppsd3.LoKrConfig, {"r": 4, "alpha": 8, "target_modules": ["to_q"], "decompose_factor": 4}),
        ("preprocess", ppsd3.VaeImageProcessor().preprocess, lambda: {"image": _picture(), "height": 16, "width": 16}),
        ("preprocess", ppsd3.SD3CannyImageProcessor().preprocess, lambda: {"image": _picture()}),
        ("postprocess", ppsd3.VaeImageProcessor().postprocess, lambda: {"image": _tensor([1, 3, 8, 8])}),
        ("SiglipImageProcessor", ppsd3.SiglipImageProcessor, ip_adapters.PROCESSOR),
        ("images", ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR).__call__, lambda: {"images": _picture()}),
        ("load_image", load_image, lambda: {"image": _picture()}),
        ("make_image_grid", make_image_grid, lambda: {"images": [_picture()] * 2, "rows": 1, "cols": 2}),
        ("CLIPTokenizer", ppsd3.CLIPTokenizer, dict(zip(("vocab", "merges"), tiny.clip_vocabulary()))),
        ("T5Tokenizer", ppsd3.T5Tokenizer, {"vocab": tiny.t5_pieces()}),
        ("CLIPTokenizer.__call__", pipe.tokenizer.__call__, {"text": "a"}),
        ("T5Tokenizer.__call__", pipe.tokenizer_3.__call__, {"text": "a"}),
        ("decode", pipe.tokenizer.decode, {"ids": [1, 2]}),
        ("AutoencoderKL.decode", networks["vae"].decode, lambda: {"z": _tensor([1, 4, 4, 4])}),
        ("AutoencoderKL.encode", networks["vae"].encode, lambda: {"x": _tensor([1, 3, 8, 8])}),
        ("TorchGenerator", ppsd3.TorchGenerator, {"seed": 1}),
        ("TorchGenerator.randn", ppsd3.TorchGenerator(0).randn, {"shape": [2]}),
        ("convert", ppsd3.convert, {"source": model / "vae", "target": PLACE}),
        ("save_pretrained", networks["vae"].save_pretrained, {"save_directory": PLACE}),
        ("save_pretrained", pipe.save_pretrained, {"save_directory": PLACE}),
        ("SkipLayerGuidance", ppsd3.SkipLayerGuidance, {"base": 5.0, "layers": [0]}),
        ("SD3MultiControlNetModel", ppsd3.SD3MultiControlNetModel, {"controlnets": [networks["controlnet"]]}),
        ("from_paddlenlp", ppsd3.from_paddlenlp, {"part": None}),
        ("from_single_file", ppsd3.AutoencoderKL.from_single_file, {"pretrained_model_link_or_path": whole}),
    ]
    folders = {"StableDiffusion3Pipeline": None, "DiffusionPipeline": None, "AutoPipelineForText2Image": None}
    folders.update(AutoPipelineForImage2Image=None, AutoPipelineForInpainting=None, AutoencoderKL="vae")
    folders.update(
        CLIPTokenizerFast="tokenizer", T5TokenizerFast="tokenizer_3", CLIPTextModelWithProjection="text_encoder"
    )
    for name, folder in folders.items():
        sound = {path: model, "subfolder": folder} if folder else {path: model}
        calls.append((f"{name}.from_pretrained", getattr(ppsd3, name).from_pretrained, sound))
    calls += [(name, getattr(ppsd3, name), {}) for name in _WITHOUT_ARGUMENTS]
    calls += [(type(network).__name__, type(network), _arguments_of(network)) for network in networks.values()]
    for name in _SCHEDULERS:
        class_ = getattr(ppsd3, name)
        calls += [(name, class_, {}), (f"{name}.set_timesteps", class_().set_timesteps, {"num_inference_steps": 2})]
        calls += [(f"{name}.step", *_step(class_))]
    return calls + _adapters(corpus.pipeline())


_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_SCHEDULERS += ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
_WITHOUT_ARGUMENTS = (
    *("LatentPreview", "PromptCache", "WeightedPrompts", "TaylorCache", "EasyCache", "FirstBlockCache"),
    *("ClassifierFreeGuidance", "ClassifierFreeZeroStarGuidance", "AdaptiveProjectedGuidance", "GuidanceInterval"),
    *("GuidanceRescale", "PerturbedAttentionGuidance"),
)
# Public names that are not tried, and why.
NOT_TRIED = {
    **dict.fromkeys(("ConfigMixin", "ModelMixin", "SchedulerMixin", "Guidance", "StepCache"), "a base class"),
    "StableDiffusion3PipelineOutput": "a result",
    "IPAdapter": "made by load_ip_adapter",
    "NoGuidance": "it has no arguments",
    "tune_process": "it has no arguments",
    "export_pipeline": "it takes seconds",
}


def _arguments_of(network):
    known = inspect.signature(type(network)).parameters
    return {name: value for name, value in network.config.items() if name in known}


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


def _transformer():
    import ppsd3

    return ppsd3.SD3Transformer2DModel(**corpus.SMALL)


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


def _adapters(pipe):
    """Calls about adapters and words, each with networks that have none but what they need."""
    import ppsd3

    tensors = loras.for_pipeline(pipe)
    layers = {f"transformer_blocks.0.attn.to_q.lora_{end}.weight": _tensor(shape) for end, shape in _LAYER.items()}

    def emptied(method, loaded=True):
        """``method`` of the pipeline with one adapter, or with none."""

        def call(**arguments):
            pipe.unload_lora_weights()
            if loaded:
                pipe.load_lora_weights(tensors, adapter_name="a")
            try:
                method(**arguments)
            finally:
                pipe.unfuse_lora()

        return _like(method, call)

    def learn(**arguments):
        try:
            pipe.load_textual_inversion(**arguments)
        finally:
            if pipe.tokenizer.added_tokens or pipe.tokenizer_2.added_tokens:
                pipe.unload_textual_inversion()

    def adapted():
        network = _transformer()
        ppsd3.add_adapter(network, ppsd3.LoraConfig())
        return network

    word = {"pretrained_model_name_or_path": np.ones((1, 16), np.float32), "token": "<a>"}
    set_state = ppsd3.set_peft_model_state_dict
    return [
        (
            "load_lora_weights",
            emptied(pipe.load_lora_weights, False),
            {"pretrained_model_name_or_path_or_dict": tensors},
        ),
        ("set_adapters", emptied(pipe.set_adapters), {"adapter_names": "a", "adapter_weights": 0.5}),
        ("delete_adapters", emptied(pipe.delete_adapters), {"adapter_names": "a"}),
        ("fuse_lora", emptied(pipe.fuse_lora), {"lora_scale": 0.5}),
        ("load_textual_inversion", _like(pipe.load_textual_inversion, learn), word),
        ("save_lora_weights", pipe.save_lora_weights, {"save_directory": PLACE, "transformer_lora_layers": layers}),
        ("add_adapter", ppsd3.add_adapter, lambda: {"network": _transformer(), "config": ppsd3.LoraConfig()}),
        ("get_peft_model_state_dict", ppsd3.get_peft_model_state_dict, lambda: {"model": adapted()}),
        ("set_peft_model_state_dict", set_state, lambda: {"model": adapted(), "peft_model_state_dict": layers}),
    ]


_LAYER = {"A": [8, 32], "B": [32, 8]}


def _like(method, function):
    """``function`` with the parameters of ``method``."""
    function.__signature__ = inspect.signature(method)
    return function
