"""Wrong arguments for every public callable: the values, the callables with arguments that are right, and the loop.

``run(cases(...))`` gives what was neither accepted nor refused by one of ppsd3's errors. A case is a target, the name
of one of its arguments and a value for it; the others stay right.
"""

import contextlib
import dataclasses
import datetime
import decimal
import fractions
import functools
import inspect
import pathlib
import random
import warnings

import numpy as np
import paddle
from PIL import Image

import ppsd3
from ppsd3.utils.errors import PPSD3Error

from . import tiny
from .tiny import picture


class Strange:
    """Like no other object, and of another library's shape: ``shape`` is no tuple, ``dtype`` no dtype."""

    shape, dtype, ndim, device = None, None, None, None


def _deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


# Name -> function that makes the value, anew for each case.
VALUES = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "3": lambda: 3,
    "10**9": lambda: 10**9,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "0.5": lambda: 0.5,
    "28.0": lambda: 28.0,
    "nan": lambda: float("nan"),
    "-inf": lambda: float("-inf"),
    "1e308": lambda: 1e308,
    "1j": lambda: 1j,
    "fraction": lambda: fractions.Fraction(1, 3),
    "decimal": lambda: decimal.Decimal("0.5"),
    "np.int64": lambda: np.int64(3),
    "np.float16": lambda: np.float16(0.5),
    "np.bool_": lambda: np.bool_(True),
    "0-d array": lambda: np.array(2),
    "0-d tensor": lambda: paddle.to_tensor(2.5),
    "empty str": lambda: "",
    "str": lambda: "a red circle",
    "number str": lambda: "512",
    "NUL": lambda: "a\0b",
    "half a character": lambda: "\ud800",
    "long str": lambda: "(" * 200_000,
    "bytes": lambda: b"a star",
    "empty list": list,
    "[None]": lambda: [None],
    "['a', None]": lambda: ["a", None],
    "[1, 'a']": lambda: [1, "a"],
    "ragged": lambda: [[1, 2], [3]],
    "rising": lambda: [0.1, 0.5, 0.9],
    "negative list": lambda: [-0.5, -1.0],
    "above 1": lambda: [7.0, 3.0],
    "nan list": lambda: [1.0, float("nan")],
    "deep": lambda: _deep(100),
    "tuple": lambda: (1, 2),
    "empty tuple": tuple,
    "dict": lambda: {"a": 1},
    "int dict": lambda: {1: 2},
    "set": lambda: {1, 2},
    "range": lambda: range(3),
    "iterator": lambda: iter([1, 2]),
    "object": object,
    "strange": Strange,
    "class": lambda: int,
    "lambda": lambda: lambda: None,
    "module": lambda: np,
    "date": lambda: datetime.date(2026, 1, 1),
    "path": lambda: pathlib.Path("/nonexistent/file"),
    "dtype": lambda: paddle.float32,
    "array": lambda: np.linspace(1, 0, 4).astype("float32"),
    "empty array": lambda: np.zeros([0, 3], "float32"),
    "nan array": lambda: np.full([8, 8, 3], np.nan, "float32"),
    "int array": lambda: np.full([8, 8, 3], 200, "int64"),
    "str array": lambda: np.array(["a", "b"]),
    "object array": lambda: np.array([object(), None]),
    "complex array": lambda: np.ones([2, 2], "complex64"),
    "many axes": lambda: np.zeros([1] * 32, "float32"),
    "tensor": lambda: paddle.ones([2, 4, 16, 16]),
    "empty tensor": lambda: paddle.zeros([0, 4]),
    "nan tensor": lambda: paddle.full([1, 4, 16, 16], float("nan")),
    "int tensor": lambda: paddle.ones([1, 4, 16, 16], "int32"),
    "picture": lambda: Image.new("RGB", (1, 1)),
    "palette": lambda: Image.new("P", (64, 64)),
    "no picture": lambda: Image.new("RGB", (0, 0)),
    "pictures": lambda: [Image.new("RGB", (64, 64)), Image.new("L", (3, 5))],
    "generator": lambda: ppsd3.TorchGenerator(1),
    "list of generators": lambda: [ppsd3.TorchGenerator(1)] * 3,
    "guidance": lambda: ppsd3.ClassifierFreeGuidance(2.0),
}


@dataclasses.dataclass
class Target:
    """A callable with arguments that are right.

    Args:
        name: for messages.
        function: takes keyword arguments; its signature has the names that are tried.
        right: function that makes the right arguments.
        left_out: arguments that are for Python alone: not tried.
    """

    name: str
    function: object
    right: object = dict
    left_out: tuple = ()

    @property
    def arguments(self):
        """Names of what is tried."""
        parameters = inspect.signature(self.function).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return [name for name in named if name not in ("self", *self.left_out)]


@dataclasses.dataclass
class Case:
    """One argument of a target with a value of ``VALUES``."""

    target: Target
    argument: str
    value: str

    def __str__(self):
        return f"{self.target.name}({self.argument}={self.value})"

    def fault(self):
        """None, or the raw error that it ends in. What is refused names the argument or a value of it."""
        arguments = {**self.target.right(), self.argument: VALUES[self.value]()}
        try:
            with contextlib.redirect_stderr(None), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.target.function(**arguments)
        except PPSD3Error as error:
            return None if str(error).strip() else error
        except Exception as error:  # noqa: BLE001 (whatever is raised is what is looked for)
            return error
        return None


def cases(targets, count=None, seed=0):
    """Every combination of targets, arguments and values; or ``count`` of them, by chance."""
    found = [Case(target, argument, value) for target in targets for argument in target.arguments for value in VALUES]
    return found if count is None else random.Random(seed).sample(found, min(count, len(found)))


def run(some):
    """[(case, error)] of those that end in an error that is not ppsd3's."""
    return [(case, fault) for case in some for fault in [case.fault()] if fault is not None]


# What is tried


def mask():
    """The mask of a picture."""
    array = np.zeros((tiny.SIDE, tiny.SIDE), "uint8")
    array[10:40, 10:40] = 255
    return Image.fromarray(array)


@functools.cache
def pipelines():
    """Name -> a tiny pipeline of each class."""
    from ppsd3.pipelines.component_classes import PIPELINE_CLASSES

    first, made = tiny.make_pipeline(), {}
    for name in PIPELINE_CLASSES:
        class_, parts = getattr(ppsd3, name), {}
        if "ControlNet" in name:
            extra = 1 if "Inpaint" in name else 0
            config = {**tiny.TRANSFORMER, "num_layers": 1, "force_zeros_for_pooled_projection": False}
            parts["controlnet"] = ppsd3.SD3ControlNetModel(**config, extra_conditioning_channels=extra)
            tiny.randomize(parts["controlnet"], 30, 0.5).eval()
        made[name] = class_.from_pipe(first, **parts)
    return made


def calls():
    """The calls of all pipelines."""
    own = {"image": picture, "mask_image": mask, "control_image": picture, "control_mask": mask}
    for name, pipe in pipelines().items():
        taken = inspect.signature(type(pipe).__call__).parameters

        def right(taken=taken):
            few = {"prompt": "a star", "num_inference_steps": 1, "output_type": "latent", "max_sequence_length": 8}
            few["generator"] = ppsd3.TorchGenerator(0)
            if "strength" in taken:
                few["strength"] = 1.0
            return {**few, **{argument: make() for argument, make in own.items() if argument in taken}}

        yield Target(name, functools.partial(type(pipe).__call__, pipe), right)


def methods():
    """Other methods of a pipeline with arguments."""
    pipe = pipelines()["StableDiffusion3Pipeline"]
    texts = functools.partial(dict, prompt="a star", prompt_2=None, prompt_3=None, max_sequence_length=8)
    yield Target("encode_prompt", pipe.encode_prompt, texts)
    for name, right in (
        ("check_inputs", {"prompt": "a star"}),
        ("encode_image", {"image": picture()}),
        ("prepare_ip_adapter_image_embeds", {"ip_adapter_image": picture()}),
        ("enable_prompt_cache", {}),
        ("set_progress_bar_config", {}),
        ("set_adapters", {"adapter_names": "a"}),
        ("delete_adapters", {"adapter_names": "a"}),
        ("fuse_lora", {}),
        ("unfuse_lora", {}),
        ("set_ip_adapter_scale", {"scale": 0.5}),
        ("enable_model_cpu_offload", {}),
        ("enable_sequential_cpu_offload", {}),
        ("from_pipe", {"pipeline": pipe}),
        ("quantize", {"kind": "int4"}),
        ("using", {"name": "vae"}),
        ("require", {"name": "vae"}),
        ("numpy_to_pil", {"images": np.zeros([1, 4, 4, 3], "float32")}),
        ("save_lora_weights", {"save_directory": "/nonexistent/lora"}),
        ("load_textual_inversion", {"pretrained_model_name_or_path": {"<a>": paddle.ones([3])}}),
        ("_get_clip_prompt_embeds", {"prompt": "a star"}),
        ("_get_t5_prompt_embeds", {"prompt": "a star", "max_sequence_length": 8}),
    ):
        yield Target(name, getattr(pipe, name), functools.partial(dict, **right))
    sizes = {"batch_size": 1, "num_channels_latents": 4, "height": 32, "width": 32, "dtype": "float32"}
    yield Target("prepare_latents", pipe.prepare_latents, functools.partial(dict, **sizes))
    pag = pipelines()["StableDiffusion3PAGPipeline"]
    yield Target("set_pag_applied_layers", type(pag).from_pipe(pag).set_pag_applied_layers)
    cache = type(pipe).from_pipe(pipe)
    yield Target("enable_cache", cache.enable_cache)
    tiled = type(pipe).from_pipe(pipe, vae=ppsd3.AutoencoderKL(**tiny.VAE))
    yield Target("enable_tiling", tiled.vae.enable_tiling)


def schedulers():
    """Methods of the samplers."""
    sample = functools.partial(paddle.ones, [1, 4, 4, 4])
    for name in (
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ):
        kind = getattr(ppsd3, name)
        for options in ({},) if "Heun" in name else ({}, {"use_dynamic_shifting": True}):

            def of_fresh(method, begun=True, kind=kind, options=options):
                @functools.wraps(getattr(kind, method))
                def call(**arguments):
                    scheduler = kind(**options)
                    if begun:
                        scheduler.set_timesteps(4, **({"mu": 1.0} if options else {}))
                    if isinstance(arguments.get("timestep"), str) and arguments["timestep"] == "first":
                        arguments["timestep"] = scheduler.timesteps[0]
                    return getattr(scheduler, method)(**arguments)

                return call

            steps = {"num_inference_steps": 4, **({"mu": 1.0} if options else {})}
            yield Target(f"{name}.set_timesteps", of_fresh("set_timesteps", False), functools.partial(dict, **steps))
            one = {"model_output": sample(), "timestep": "first", "sample": sample()}
            yield Target(f"{name}.step", of_fresh("step"), functools.partial(dict, **one))
            noise = {"sample": sample(), "timestep": "first", "noise": sample()}
            yield Target(f"{name}.scale_noise", of_fresh("scale_noise"), functools.partial(dict, **noise))
            found = {"timestep": "first"}
            yield Target(f"{name}.index", of_fresh("index_for_timestep"), functools.partial(dict, **found))
            yield Target(f"{name}.set_begin_index", of_fresh("set_begin_index"))
            if hasattr(kind, "add_noise"):
                adding = {"original_samples": sample(), "noise": sample(), "timesteps": 1000.0}
                yield Target(f"{name}.add_noise", of_fresh("add_noise"), functools.partial(dict, **adding))
            if hasattr(kind, "set_shift"):
                yield Target(f"{name}.set_shift", of_fresh("set_shift"), functools.partial(dict, shift=2.0))
                shifting = {"mu": 1.0, "sigma": 1.0, "t": 0.5}
                yield Target(f"{name}.time_shift", of_fresh("time_shift"), functools.partial(dict, **shifting))
    stretching = ppsd3.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1).stretch_shift_to_terminal
    yield Target("stretch_shift_to_terminal", stretching, functools.partial(dict, t=np.array([1.0, 0.5])))


def constructors():
    """Objects that a call takes."""
    for name, right in (
        ("ClassifierFreeGuidance", {}),
        ("ClassifierFreeZeroStarGuidance", {}),
        ("AdaptiveProjectedGuidance", {}),
        ("GuidanceInterval", {}),
        ("GuidanceRescale", {}),
        ("SkipLayerGuidance", {"base": 7.0, "layers": [1]}),
        ("PerturbedAttentionGuidance", {}),
        ("TaylorCache", {}),
        ("EasyCache", {}),
        ("FirstBlockCache", {}),
        ("StepCache", {"warmup": 3}),
        ("WeightedPrompts", {}),
        ("LatentPreview", {}),
        ("TorchGenerator", {}),
        ("LoraConfig", {}),
        ("LoKrConfig", {}),
        ("VaeImageProcessor", {}),
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchHeunDiscreteScheduler", {}),
        ("FlowMatchLCMScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
    ):
        yield Target(name, getattr(ppsd3, name), functools.partial(dict, **right))
    yield Target("PromptCache", ppsd3.PromptCache, left_out=("directory",))


def networks():
    """The VAE's methods, image processors, and what draws noise and previews."""
    pipe = pipelines()["StableDiffusion3Pipeline"]
    latents, pixels = paddle.ones([1, 4, 4, 4]), paddle.ones([1, 3, 16, 16])
    tiny_vae = ppsd3.AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=[4] * 4, decoder_block_out_channels=[4] * 4
    )
    tiny_vae.eval()
    for kind, vae in (("AutoencoderKL", pipe.vae), ("AutoencoderTiny", tiny_vae)):
        first = next(iter(inspect.signature(vae.decode).parameters))
        yield Target(f"{kind}.decode", vae.decode, functools.partial(dict, **{first: latents}))
        yield Target(f"{kind}.encode", vae.encode, functools.partial(dict, x=pixels))
    processor, canny = pipe.image_processor, ppsd3.SD3CannyImageProcessor()
    yield Target("preprocess", processor.preprocess, functools.partial(dict, image=picture()))
    yield Target("canny", canny.preprocess, functools.partial(dict, image=picture()))
    yield Target("postprocess", processor.postprocess, functools.partial(dict, image=pixels))
    yield Target("resize", processor.resize, functools.partial(dict, picture=picture(), height=8, width=8))
    yield Target("blur", processor.blur, functools.partial(dict, picture=picture()))
    yield Target(
        "get_crop_region", processor.get_crop_region, functools.partial(dict, mask_image=mask(), width=32, height=32)
    )
    overlay = {"mask": mask(), "init_image": picture(), "image": picture(1)}
    yield Target("apply_overlay", processor.apply_overlay, functools.partial(dict, **overlay))
    for name in ("normalize", "denormalize"):
        yield Target(name, getattr(processor, name), functools.partial(dict, pixels=pixels))
    for name in ("numpy_to_pt", "pt_to_numpy", "pil_to_numpy"):
        yield Target(name, getattr(processor, name))
    yield Target("numpy_to_pil", processor.numpy_to_pil)
    preview = ppsd3.LatentPreview(factors=np.ones([4, 3], "float32"))
    yield Target("preview", preview.__call__, functools.partial(dict, latents=latents))
    yield Target("preview.callback", preview.callback, functools.partial(dict, show=print))
    yield Target("manual_seed", ppsd3.TorchGenerator().manual_seed)
    yield Target("TorchGenerator.randn", ppsd3.TorchGenerator().randn, functools.partial(dict, shape=[2]))
    yield Target("TorchGenerator.rand", ppsd3.TorchGenerator().rand, functools.partial(dict, shape=[2]))
    yield Target("set_state", ppsd3.TorchGenerator().set_state)
    from ppsd3.utils.random import randn

    yield Target("randn", randn, functools.partial(dict, shape=[2, 3]))


def training():
    """What a training script calls."""
    from ppsd3 import training_utils
    from ppsd3.training import ema, flow_matching, timestep_sampling

    density = {"weighting_scheme": "logit_normal", "batch_size": 4, "logit_mean": 0.0, "logit_std": 1.0}
    yield Target("density", training_utils.compute_density_for_timestep_sampling, functools.partial(dict, **density))
    weighting = {"weighting_scheme": "none", "sigmas": paddle.ones([2])}
    yield Target("weighting", training_utils.compute_loss_weighting_for_sd3, functools.partial(dict, **weighting))
    yield Target("set_seed", training_utils.set_seed, functools.partial(dict, seed=0))
    yield Target("RectifiedFlow", flow_matching.RectifiedFlow)
    yield Target("timestep_density", timestep_sampling.timestep_density, functools.partial(dict, name="mode"))
    layer = paddle.nn.Linear(2, 2)
    yield Target("EMA", ema.EMA, functools.partial(dict, parameters=dict(layer.named_parameters())))


ALL = (calls, methods, schedulers, constructors, networks, training)


def all_targets():
    """All of them."""
    return [target for group in ALL for target in group()]
