"""The real ppdiffusers and PaddleNLP, and one checkpoint that both sides read.

Every test here is marked ``interop`` and imports neither at its top, so that it can be collected without them: it takes
the fixture ``ppdiffusers``. ``.ci/run interop`` makes an environment that has both.
"""

import importlib
import importlib.util
import shutil

import pytest
from helpers.interop import fill_gaps

from ppsd3 import StableDiffusion3Pipeline


@pytest.fixture(scope="session", autouse=True)
def ppdiffusers():
    """The module."""
    for name in ("paddlenlp", "ppdiffusers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; .ci/run interop makes an environment that has it")
    fill_gaps()
    return importlib.import_module("ppdiffusers")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Directory of the bundled model in diffusers layout; PaddleNLP reads the ``spiece.model`` that is made for it. Not
    to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("interop") / "shapes"
    pipe = StableDiffusion3Pipeline.from_pretrained("shapes")
    pipe.call_defaults = {}  # ppdiffusers has 28 steps and a guidance of 7 for every checkpoint
    pipe.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def their_parts(ppdiffusers, checkpoint, tmp_path_factory):
    """dict: the nine components of ``checkpoint``, each read by ppdiffusers or PaddleNLP themselves."""
    from ppdiffusers.transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    # PaddleNLP writes what it converts beside what it reads.
    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("theirs") / "shapes")
    networks = {
        "transformer": ppdiffusers.SD3Transformer2DModel,
        "vae": ppdiffusers.AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    others = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
        "scheduler": ppdiffusers.FlowMatchEulerDiscreteScheduler,
    }
    parts = {name: kind.from_pretrained(str(directory / name)) for name, kind in others.items()}
    for name, kind in networks.items():
        parts[name] = kind.from_pretrained(str(directory / name), from_diffusers=True)
        parts[name].eval()
    return parts


@pytest.fixture(scope="session")
def theirs(ppdiffusers, their_parts):
    """ppdiffusers' text-to-image pipeline over ``checkpoint``."""
    return quiet(ppdiffusers.StableDiffusion3Pipeline(**their_parts))


@pytest.fixture(scope="session")
def ours(checkpoint):
    """Our text-to-image pipeline over ``checkpoint``."""
    return quiet(StableDiffusion3Pipeline.from_pretrained(checkpoint))


def quiet(pipe):
    """``pipe`` without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
