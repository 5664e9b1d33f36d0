"""Text encoders and tokenizers of PaddleNLP, as ppsd3's own. tests/interop has the real ones."""

import numpy as np
import paddle
import pytest
from helpers import tiny
from helpers.foreign import same, stand_in

import ppsd3
from ppsd3.utils.errors import InputError, WeightMismatchError

TOWERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.fixture(scope="module")
def parts():
    return tiny.make_components()


@pytest.mark.parametrize("library", ["paddlenlp", "ppdiffusers"])
@pytest.mark.parametrize("name", TOWERS)
def test_text_encoders(parts, name, library):
    own = parts[name]
    made = ppsd3.from_paddlenlp(stand_in(own, library))
    assert type(made) is type(own) and made.config == own.config and not made.training
    assert same(made, own)
    ids = paddle.to_tensor([[3, 5, 7, 11, 4]])
    assert np.array_equal(made(ids)[0].numpy(), own(ids)[0].numpy())


def test_layers_of_t5_that_overflow(parts):
    other = stand_in(parts["text_encoder_3"].to(dtype="float16"))
    parts["text_encoder_3"].to(dtype="float32")
    for name in other.state_dict():
        other.state_dict()[name] = other.state_dict()[name].astype("float16")
    made = ppsd3.from_paddlenlp(other)
    assert made.dtype == paddle.float16
    assert {t.dtype for name, t in made.state_dict().items() if ".wo." in name} == {paddle.float32}


def test_weights_are_copied_in_their_dtype(parts):
    other = stand_in(parts["text_encoder"].to(dtype="float16"))
    made = ppsd3.from_paddlenlp(other)
    parts["text_encoder"].to(dtype="float32")
    assert made.dtype == paddle.float16
    before = {name: tensor.numpy() for name, tensor in other.state_dict().items()}
    with paddle.no_grad():
        for tensor in made.state_dict().values():
            tensor.scale_(2.0)
    for name, tensor in other.state_dict().items():
        assert np.array_equal(tensor.numpy(), before[name]), name


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_tokenizers(parts, name):
    made = ppsd3.from_paddlenlp(stand_in(parts[name]))
    assert type(made) is type(parts[name])
    texts = ["a red circle", "", "Blue  square, 3!"]
    assert np.array_equal(made(texts).input_ids, parts[name](texts).input_ids)


def test_a_class_that_extends_one(parts):
    other = stand_in(parts["text_encoder"])
    mine = type("MyEncoder", (type(other),), {"__module__": "my_module"})(parts["text_encoder"])
    assert isinstance(ppsd3.from_paddlenlp(mine), ppsd3.CLIPTextModelWithProjection)


def test_what_is_not_taken(parts):
    """Own parts are given back; a class of that name that is in neither library is no such class."""
    assert ppsd3.from_paddlenlp(parts["tokenizer_3"]) is parts["tokenizer_3"]
    for part in (parts["transformer"], stand_in(parts["text_encoder"], "transformers"), 3, None):
        with pytest.raises(InputError, match=r"takes a CLIPTextModelWithProjection, T5EncoderModel, .* not a "):
            ppsd3.from_paddlenlp(part)


def test_more_than_the_weights(parts):
    other = stand_in(parts["text_encoder"])
    other.state_dict()["text_model.encoder.layers.0.self_attn.q_proj.lora_A"] = paddle.ones([16, 4])
    with pytest.raises(WeightMismatchError, match=r"a paddlenlp CLIPTextModelWithProjection does not fit"):
        ppsd3.from_paddlenlp(other)
