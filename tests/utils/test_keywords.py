"""Keywords of other libraries, tried on every call that loads, saves or moves something.

What changes nothing is accepted by all of them, what would change something is refused by all of them with the same
words, before anything is read; and none raises a bare TypeError.
"""

import inspect
import shutil

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, tiny

import ppsd3
from ppsd3 import pipelines, schedulers
from ppsd3.pipelines.component_classes import COMPONENT_CLASSES, PIPELINE_CLASSES
from ppsd3.utils.errors import InputError, UnknownArgumentError
from ppsd3.utils.keywords import LOADING, MOVING, SAVING

ANYTHING = (True, False, None, "x", {"a": 1})
SWITCHED_OFF = (
    *("disable_mmap", "use_flashpack", "use_onnx", "from_flax", "from_tf", "ignore_mismatched_sizes", "push_to_hub"),
    *("output_loading_info", "return_unused_kwargs", "from_aistudio", "return_cached_folder", "safety_checker", "copy"),
    "return_commit_hash",
    *("requires_safety_checker", "load_safety_checker", "load_in_8bit", "load_in_4bit", "extract_ema"),
    *("add_prefix_space", "clean_up_tokenization_spaces"),
)
# Keyword -> (values that change nothing, values that would); a line that is not here accepts anything.
VALUES = {
    **dict.fromkeys(("variant", "paddle_dtype", "torch_dtype", "dtype", "use_auth_token"), ((None,), ())),
    "subfolder": ((None, ""), ("fp16",)),
    "use_safetensors": ((True, None), (False,)),
    "state_dict": ((None,), ({}, np.zeros(2))),
    "strict": ((True,), (False,)),
    "custom_pipeline": ((None,), ("clip_guided",)),
    "custom_revision": ((None,), ("main",)),
    "config_revision": ((None,), ("main",)),
    "scaling_factor": ((None,), (1.5,)),
    "mirror": ((None,), ("tuna",)),
    "local_dir": ((None,), ("here",)),
    "dduf_file": ((None,), ("sd3.dduf",)),
    "quantization_config": ((None,), ({"load_in_4bit": True},)),
    "use_keep_in_fp32_modules": ((None, True), (False,)),
    "original_config": ((None,), ("sd3.yaml",)),
    "original_config_file": ((None,), ("sd3.yaml",)),
    "map_location": ((None, "cpu", paddle.CPUPlace()), ("cuda", "gpu:1", "numpy")),
    "device": ((None, "cpu"), ("cuda", 0)),
    "device_map": ((None, "cpu", {"": "cpu"}), ("balanced", "auto", "cuda", {"unet": "cpu"}, {"": 0})),
    "max_memory": ((None, {}), ({0: "1GB"},)),
    "proxies": ((None, {}), ({"https": "proxy"},)),
    "flashpack_kwargs": ((None, {}), ({"a": 1},)),
    "provider_options": ((None, {}), ([{"a": 1}],)),
    "tensor_parallel_degree": ((None, 1, -1), (2,)),
    "tensor_parallel_rank": ((None, 0, -1), (1,)),
    "padding_side": ((None, "right"), ("left",)),
    "truncation_side": ((None, "right"), ("left",)),
    "safe_serialization": ((None, True), (False,)),
    "to_diffusers": ((None, True), (False,)),
    "is_main_process": ((None, True), (False,)),
    **dict.fromkeys(("tp_plan", "parallel_config", "provider", "sess_options"), ((None,), ("x",))),
    **dict.fromkeys(("runtime_options", "save_function"), ((None,), (print,))),
    **dict.fromkeys(SWITCHED_OFF, ((None, False), (True, "x"))),
    "from_hf_hub": (ANYTHING, ()),  # refused where another hub is chosen: test_hub.py
}

NETWORKS = [getattr(ppsd3, n) for n, (_, kind, _) in COMPONENT_CLASSES.items() if kind == "models"]
NETWORKS += [ppsd3.CLIPTextModelWithProjection, ppsd3.T5EncoderModel, ppsd3.SiglipVisionModel]
OTHERS = [ppsd3.CLIPTokenizer, ppsd3.T5Tokenizer, ppsd3.SiglipImageProcessor]
SCHEDULERS = [getattr(schedulers, n) for n, (_, kind, _) in COMPONENT_CLASSES.items() if kind == "schedulers"]
AUTO = [ppsd3.AutoPipelineForText2Image, ppsd3.AutoPipelineForImage2Image, ppsd3.AutoPipelineForInpainting]
PIPELINES = [getattr(pipelines, name) for name in PIPELINE_CLASSES]
LOADERS = (
    [(c, "from_pretrained") for c in (*PIPELINES, ppsd3.DiffusionPipeline, *AUTO, *NETWORKS, *OTHERS, *SCHEDULERS)]
    + [(c, "from_single_file") for c in (*PIPELINES, *NETWORKS)]
    + [(c, "from_pipe") for c in PIPELINES]
    + [(c, "from_config") for c in (*NETWORKS, *SCHEDULERS)]
    + [(ppsd3.StableDiffusion3Pipeline, "lora_state_dict")]
)
METHODS = ["load_lora_weights", "load_ip_adapter", "load_image_encoder", "load_textual_inversion"]


def name_of(case):
    return case.__name__ if isinstance(case, type) else str(case)


@pytest.fixture(scope="module")
def pipe():
    return tiny.make_pipeline()


def undeclared(function, table):
    """The lines of ``table`` that are not arguments of the function's own."""
    parameters = inspect.signature(function).parameters
    return {name: line for name, line in table.items() if name not in parameters}


def assert_refusals(call, table):
    """Each value that would change something is refused in the words of the table, and a misspelt name as unknown."""
    for name, line in table.items():
        for value in VALUES.get(name, (ANYTHING, ()))[1]:
            with pytest.raises(InputError) as caught:
                call(**{name: value})
            assert not isinstance(caught.value, UnknownArgumentError)
            assert f"{name}=" in str(caught.value) and line.remedy[:20].split("{")[0] in str(caught.value)


def test_every_line_says_what_it_does():
    for name, line in {**LOADING, **SAVING, **MOVING}.items():
        harmless, harmful = VALUES.get(name, (ANYTHING, ()))
        assert all(line.harmless(value) for value in harmless), name
        assert not any(line.harmless(value) for value in harmful), name
        assert not harmful or line.remedy.endswith("."), name


@pytest.mark.parametrize("owner, method", LOADERS, ids=name_of)
def test_what_would_change_something_is_refused_before_anything_is_read(owner, method):
    function, keys = getattr(owner, method), owner._known_keys() if owner in NETWORKS else ()
    lines = {name: line for name, line in undeclared(function, LOADING).items() if name not in keys}
    assert_refusals(lambda **keywords: function("no/such/place", **keywords), lines)


@pytest.mark.parametrize("owner, method", LOADERS, ids=name_of)
def test_no_bare_type_error(owner, method):
    function = getattr(owner, method)
    if owner in (ppsd3.DiffusionPipeline, *SCHEDULERS):  # entries of what is not known yet
        with pytest.raises(InputError, match="argument"):
            function(*range(99))
        return
    with pytest.raises(UnknownArgumentError, match=rf"{owner.__name__}\.{method} has no argument 'paddle_dtpe'"):
        function("no/such/place", paddle_dtpe="float16")
    with pytest.raises(UnknownArgumentError, match=f"{owner.__name__}.{method}: "):
        function()


@pytest.mark.parametrize("method", METHODS)
def test_loaders_of_a_pipeline(pipe, method):
    function = getattr(pipe, method)
    named = inspect.signature(pipe.lora_state_dict).parameters  # what **options of some of them are for
    lines = {name: line for name, line in LOADING.items() if name not in named}
    assert_refusals(lambda **keywords: function("no/such/place", **keywords), undeclared(function, lines))
    with pytest.raises(
        UnknownArgumentError, match=r"has no argument 'wieght_name'. Did you mean 'weight_name'\?|It takes"
    ):
        function("no/such/place", wieght_name="x.safetensors")


@pytest.mark.parametrize("kind", [*NETWORKS, *OTHERS, *SCHEDULERS, *PIPELINES], ids=name_of)
def test_saving(kind, tmp_path):
    made = kind.__new__(kind)  # what is refused is refused before the object is looked at

    def save(**keywords):
        kind.save_pretrained(made, tmp_path / "x", **keywords)

    assert_refusals(save, undeclared(kind.save_pretrained, SAVING))
    with pytest.raises(UnknownArgumentError, match="has no argument 'torch_dtype'"):  # which would act when loading
        save(torch_dtype="float16")
    with pytest.raises(UnknownArgumentError, match=f"{kind.__name__}.save_pretrained has no argument 'shard_size'"):
        save(shard_size="1GB")
    assert not list(tmp_path.iterdir())


def harmless(table, function, number):
    """The keywords of ``table`` that ``function`` does not declare, each with a value that changes nothing."""
    keys = getattr(function.__self__, "_known_keys", list)() if inspect.ismethod(function) else ()
    values = {name: VALUES.get(name, (ANYTHING,))[0] for name in undeclared(function, table) if name not in keys}
    return {name: some[number % len(some)] for name, some in values.items()}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with all that a class of ppsd3 can be read from, each in the folder of its class's name."""
    directory = tmp_path_factory.mktemp("all") / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)
    made = {
        "AutoencoderTiny": ppsd3.AutoencoderTiny(latent_channels=4, encoder_block_out_channels=(8,) * 4),
        "SiglipVisionModel": ppsd3.SiglipVisionModel(**ip_adapters.SIGLIP),
        "SiglipImageProcessor": ppsd3.SiglipImageProcessor(**ip_adapters.PROCESSOR),
        "SD3ControlNetModel": tiny_control_net(),
        "SD3MultiControlNetModel": ppsd3.SD3MultiControlNetModel([tiny_control_net(), tiny_control_net()]),
        **{kind.__name__: kind() for kind in SCHEDULERS},
    }
    for name, part in made.items():
        part.save_pretrained(directory / name)
    for name, folder in FOLDERS.items():
        shutil.copytree(directory / folder, directory / name)
    return directory


FOLDERS = {
    "SD3Transformer2DModel": "transformer",
    "AutoencoderKL": "vae",
    "CLIPTextModelWithProjection": "text_encoder",
    "T5EncoderModel": "text_encoder_3",
    "CLIPTokenizer": "tokenizer",
    "T5Tokenizer": "tokenizer_3",
}


def tiny_control_net():
    return ppsd3.SD3ControlNetModel(
        **{k: v for k, v in tiny.TRANSFORMER.items() if k in ppsd3.SD3ControlNetModel._known_keys()}
    )


def state_of(part):
    """What tells two of them apart, as bytes."""
    if isinstance(part, paddle.nn.Layer):
        return {name: tensor.numpy().tobytes() for name, tensor in part.state_dict().items()}
    if isinstance(part, ppsd3.DiffusionPipeline):
        return {name: state_of(component) for name, component in part.components.items() if component is not None}
    return part.config if hasattr(part, "config") else (len(part), part("a red circle").input_ids.tolist())


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    "kind", [*PIPELINES, ppsd3.DiffusionPipeline, *AUTO, *NETWORKS, *OTHERS, *SCHEDULERS], ids=name_of
)
def test_what_changes_nothing_is_accepted_by_all(checkpoint, kind, number):
    path = checkpoint if hasattr(kind, "from_pipe") else checkpoint / kind.__name__
    parts = {"controlnet": tiny_control_net()} if "ControlNet" in kind.__name__ and kind in PIPELINES else {}
    keywords = harmless(LOADING, kind.from_pretrained, number)
    loaded = kind.from_pretrained(path, **parts, **keywords)
    assert state_of(loaded) == state_of(kind.from_pretrained(path, **parts))


def test_what_has_no_weights_ignores_variants_and_dtypes(checkpoint):
    keywords = {"variant": "fp16", "torch_dtype": "float16", "dtype": paddle.bfloat16, "paddle_dtype": "no dtype"}
    for kind in (*OTHERS, *SCHEDULERS):
        loaded = kind.from_pretrained(checkpoint, subfolder=kind.__name__, **keywords)
        assert state_of(loaded) == state_of(kind.from_pretrained(checkpoint / kind.__name__))


class TorchDtype:
    """Prints itself as ``torch.float16`` does, which may not be installed."""

    def __repr__(self):
        return "torch.float16"


FLOAT16 = (paddle.float16, "float16", "paddle.float16", "torch.float16", "half", np.float16, TorchDtype())


@pytest.mark.parametrize("name", ["paddle_dtype", "torch_dtype", "dtype"])
@pytest.mark.parametrize("dtype", FLOAT16, ids=repr)
def test_dtypes_under_all_names(checkpoint, name, dtype):
    tower = ppsd3.T5EncoderModel.from_pretrained(checkpoint, subfolder="text_encoder_3", **{name: dtype})
    assert tower.dtype == paddle.float16
    assert tower.to(**{name: "float32"}).dtype == paddle.float32 and tower.to(dtype).dtype == paddle.float16


@pytest.mark.parametrize("name", ["paddle_dtype", "torch_dtype", "dtype"])
@pytest.mark.parametrize("kind", [*PIPELINES, ppsd3.DiffusionPipeline, *AUTO, *NETWORKS], ids=name_of)
def test_dtypes_of_all_classes(checkpoint, kind, name):
    is_pipeline = hasattr(kind, "from_pipe")
    parts = {"controlnet": tiny_control_net()} if "ControlNet" in kind.__name__ and is_pipeline else {}
    loaded = kind.from_pretrained(
        checkpoint, **(parts if is_pipeline else {"subfolder": kind.__name__}), **{name: "half"}
    )
    assert loaded.dtype == paddle.float16
    if is_pipeline:
        half = loaded.to("cpu", **{name: "bfloat16"})
        assert half.vae.dtype == half.text_encoder.dtype == half.transformer.dtype == paddle.bfloat16
        again = type(loaded).from_pipe(loaded, **{name: paddle.float32})
        assert again.transformer is loaded.transformer and again.dtype == paddle.float32
    elif kind is not ppsd3.SD3MultiControlNetModel:
        assert kind.from_config(loaded.config, **{name: "float16"}).dtype == paddle.float16


def test_one_argument_under_two_names(checkpoint):
    load = ppsd3.AutoencoderKL.from_pretrained
    assert load(checkpoint / "vae", torch_dtype=TorchDtype(), paddle_dtype="float16").dtype == paddle.float16
    with pytest.raises(InputError, match="`torch_dtype` and `paddle_dtype`, which are one argument"):
        load(checkpoint / "vae", torch_dtype="float32", paddle_dtype="float16")
    with pytest.raises(InputError, match="multiple values"):
        load(checkpoint, "vae", None, "float16", torch_dtype="float32")
    with pytest.raises(InputError, match="no dtype that a model can be held in"):
        load(checkpoint / "vae", torch_dtype="auto")


def test_config_overrides_of_networks(checkpoint):
    load = ppsd3.SD3ControlNetModel.from_pretrained
    folder = checkpoint / "SD3ControlNetModel"
    assert load(folder, extra_conditioning_channels=0).config.extra_conditioning_channels == 0
    with pytest.raises(ppsd3.utils.errors.WeightMismatchError, match="pos_embed_input"):
        load(folder, extra_conditioning_channels=1)
    wider = ppsd3.SD3ControlNetModel.from_config(load(folder).config, extra_conditioning_channels=1)
    wider.save_pretrained(checkpoint / "wider")
    assert state_of(load(checkpoint / "wider", extra_conditioning_channels=1)) == state_of(wider)
    vae = ppsd3.AutoencoderKL.from_pretrained(checkpoint, subfolder="vae", scaling_factor=2.0)
    assert (
        vae.config.scaling_factor
        == ppsd3.AutoencoderKL.from_config(tiny.VAE, scaling_factor=2.0).config.scaling_factor
        == 2
    )
    tower = ppsd3.CLIPTextModelWithProjection.from_pretrained(checkpoint, "text_encoder", hidden_act="gelu")
    assert tower.config.hidden_act == "gelu"


def test_loading_info(checkpoint):
    for kind in NETWORKS:
        if kind is not ppsd3.SD3MultiControlNetModel:
            loaded, info = kind.from_pretrained(checkpoint / kind.__name__, output_loading_info=True)
            assert isinstance(loaded, kind) and set(info) == {
                "missing_keys",
                "unexpected_keys",
                "mismatched_keys",
                "error_msgs",
            }
            assert not any(info.values())


def test_tokens_and_length_of_a_tokenizer(checkpoint):
    load = ppsd3.CLIPTokenizer.from_pretrained
    tokenizer = load(checkpoint, subfolder="tokenizer", pad_token="!", model_max_length=9, revision="main")
    assert tokenizer.pad_token == "!" and tokenizer("a").input_ids.shape == (1, 9)
    assert load(checkpoint / "tokenizer", pad_token=None).pad_token == "<|endoftext|>"


@pytest.mark.parametrize("kind", [ppsd3.AutoencoderKL, ppsd3.StableDiffusion3Pipeline], ids=name_of)
def test_moving(checkpoint, kind):
    loaded = kind.from_pretrained(checkpoint if kind in PIPELINES else checkpoint / "vae")
    for device in ("cpu", "cpu:0", paddle.CPUPlace(), loaded.device):
        for number in range(3):
            assert loaded.to(device, **harmless(MOVING, kind.to, number)) is loaded
    assert loaded.to(TorchDtype(), "cpu").dtype == loaded.to("cpu", "float16").dtype == paddle.float16
    assert_refusals(loaded.to, undeclared(kind.to, MOVING))
    for wrong, message in {
        ("cuda",): "'cuda' is not here: this Paddle",
        ("cuda:0",): "Install paddlepaddle-gpu",
        ("gpu:7", "float32"): "'gpu:7' is not here",
        ("npu",): "without npu",
        ("fast",): "takes a device",
        ("int8",): "cannot be held in int8",
        ("cpu", "cpu"): "one device and one dtype",
        ("float16", "float32"): "one device and one dtype",
    }.items():
        with pytest.raises(InputError, match=message):
            loaded.to(*wrong)
    assert loaded.dtype == paddle.float16, "nothing was changed by what was refused"
    with pytest.raises(UnknownArgumentError, match=r"has no argument 'devise'\. Did you mean 'device'"):
        loaded.to(devise="cpu")


def test_configurations_alone(checkpoint):
    for kind in (*NETWORKS, *SCHEDULERS, ppsd3.SiglipImageProcessor):
        keywords = harmless(LOADING, kind.load_config, 0)
        config = kind.load_config(checkpoint, subfolder=kind.__name__, **keywords)
        assert config == kind.load_config(checkpoint / kind.__name__)
    assert ppsd3.AutoencoderKL.load_config("shapes", subfolder="vae")["latent_channels"] > 0
    with pytest.raises(InputError, match="quantization_config"):
        ppsd3.AutoencoderKL.load_config("shapes", subfolder="vae", quantization_config="x")
