"""The tables know every keyword that diffusers' own calls take, and torch's own objects mean what their names mean."""

import inspect
import re

import paddle
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import ppsd3
from ppsd3.pipelines import DiffusionPipeline
from ppsd3.utils.keywords import ALIASES, HUB_KEYWORDS, LOADING, MOVING, SAVING

pytestmark = pytest.mark.parity

# A call of diffusers, ours, and the table of its keywords.
CALLS = [
    (diffusers.DiffusionPipeline.from_pretrained, DiffusionPipeline.from_pretrained, LOADING),
    (diffusers.DiffusionPipeline.from_pipe, DiffusionPipeline.from_pipe, LOADING),
    (diffusers.DiffusionPipeline.save_pretrained, DiffusionPipeline.save_pretrained, SAVING),
    (diffusers.DiffusionPipeline.to, DiffusionPipeline.to, MOVING),
    (diffusers.ModelMixin.from_pretrained, ppsd3.AutoencoderKL.from_pretrained, LOADING),
    (diffusers.ModelMixin.save_pretrained, ppsd3.AutoencoderKL.save_pretrained, SAVING),
    (diffusers.AutoencoderKL.from_single_file, ppsd3.AutoencoderKL.from_single_file, LOADING),
    (
        diffusers.StableDiffusion3Pipeline.from_single_file,
        ppsd3.StableDiffusion3Pipeline.from_single_file,
        LOADING,
    ),
    (
        diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained,
        ppsd3.FlowMatchEulerDiscreteScheduler.from_pretrained,
        LOADING,
    ),
    (
        diffusers.FlowMatchEulerDiscreteScheduler.load_config,
        ppsd3.FlowMatchEulerDiscreteScheduler.from_pretrained,
        LOADING,
    ),
    (
        diffusers.StableDiffusion3Pipeline.lora_state_dict,
        ppsd3.StableDiffusion3Pipeline.lora_state_dict,
        LOADING,
    ),
]
OF_OTHER_MODELS = {"unet_config", "load_into_transformer_2", "text_config", "hpu_migration", "sdp_on_bf16"}


def keywords_of(function):
    """Names that a call of diffusers declares or takes out of its ``**kwargs``."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    parameters = inspect.signature(function).parameters.values()
    declared = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return declared | set(re.findall(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""", inspect.getsource(function)))


@pytest.mark.parametrize("theirs, ours, table", CALLS, ids=lambda value: getattr(value, "__qualname__", None))
def test_every_keyword_of_diffusers_is_known(theirs, ours, table):
    known = {*inspect.signature(ours).parameters, *table, *ALIASES, *HUB_KEYWORDS, "self", "cls"}
    taken = keywords_of(theirs)
    assert taken, "their source is read"
    assert taken - known - OF_OTHER_MODELS == set()


def test_objects_of_torch():
    vae = ppsd3.AutoencoderKL.from_pretrained(
        "shapes", subfolder="vae", torch_dtype=torch.bfloat16, device_map=torch.device("cpu")
    )
    assert vae.dtype == paddle.bfloat16
    assert vae.to(torch.device("cpu"), torch.float16, memory_format=torch.channels_last).dtype == paddle.float16
    assert vae.to(torch.float32).dtype == paddle.float32
    with pytest.raises(ppsd3.utils.errors.InputError, match="'cuda:0' is not here"):
        vae.to(torch.device("cuda:0"))
