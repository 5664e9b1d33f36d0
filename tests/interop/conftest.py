"""The real ppdiffusers and PaddleNLP, and one checkpoint that both sides read.

Every test here is marked ``interop`` and imports neither at its top, so that it can be collected without them: it takes
the fixture ``ppdiffusers``. ``.ci/run interop`` makes an environment that has both.
"""

import importlib
import importlib.util
import json
import shutil

import paddle.nn.functional as F
import pytest
from paddle import nn

from ppsd3 import StableDiffusion3Pipeline


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, training=True, **_):
    """[B, S, h, d], with a scale that Paddle's own has not."""
    if scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, training)


def _fill_gaps():
    """What ppdiffusers 0.29.0 calls and Paddle 3.3 does not have; ppdiffusers makes them on other versions alone."""
    if not hasattr(F, "scaled_dot_product_attention_"):
        F.scaled_dot_product_attention_ = _attention
    for name in ("keys", "values", "items"):
        if not hasattr(nn.ParameterDict, name):
            setattr(nn.ParameterDict, name, lambda self, name=name: getattr(dict(self._parameters), name)())


@pytest.fixture(scope="session", autouse=True)
def ppdiffusers():
    """The module."""
    for name in ("paddlenlp", "ppdiffusers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; .ci/run interop makes an environment that has it")
    _fill_gaps()
    return importlib.import_module("ppdiffusers")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Directory of the bundled model in diffusers layout, with the ``spiece.model`` that PaddleNLP's T5 tokenizer
    needs. Not to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("interop") / "shapes"
    StableDiffusion3Pipeline.from_pretrained("shapes").save_pretrained(directory)
    _write_spiece_model(directory / "tokenizer_3")
    return directory


def _write_spiece_model(directory):
    """The vocabulary of ``tokenizer.json`` as a protocol buffer, in the words of the sentencepiece library."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    vocabulary = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    kinds = protocol.ModelProto.SentencePiece
    special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
    model = protocol.ModelProto()
    for piece, score in vocabulary:
        model.pieces.add(piece=piece, score=score, type=special.get(piece, kinds.NORMAL))
    spec = model.trainer_spec
    spec.model_type, spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = protocol.TrainerSpec.UNIGRAM, 0, 1, 2, -1
    (directory / "spiece.model").write_bytes(model.SerializeToString())


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
