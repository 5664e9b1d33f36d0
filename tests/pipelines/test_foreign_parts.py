"""Text encoders and tokenizers of PaddleNLP in a pipeline: it draws, is saved with ppsd3's own, and says what to call
where those are needed. tests/interop has the real ones."""

import logging
import re

import numpy as np
import pytest
from helpers import loras, tiny
from helpers.foreign import same, stand_in

import ppsd3
from ppsd3.utils.errors import InputError

FOREIGN = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


@pytest.fixture(scope="module")
def parts():
    return tiny.make_components()


@pytest.fixture
def pipe(parts):
    made = ppsd3.StableDiffusion3Pipeline(**{n: stand_in(p) if n in FOREIGN else p for n, p in parts.items()})
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe, prompt="a red circle"):
    options = {"num_inference_steps": 1, "generator": ppsd3.TorchGenerator(0), "output_type": "np"}
    return pipe(prompt, max_sequence_length=32, **options).images


def refuses(what, name):
    remedy = f"Convert it: pipe.{name} = ppsd3.from_paddlenlp(pipe.{name})."
    return pytest.raises(InputError, match=f"^{what} .* this is a paddlenlp .*{re.escape(remedy)}$")


def test_saved_with_own_parts(pipe, parts, tmp_path):
    picture = draw(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    again = ppsd3.StableDiffusion3Pipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert same(again.text_encoder_3, parts["text_encoder_3"])
    assert np.array_equal(draw(again), picture)


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler"])
def test_a_part_that_cannot_be_saved(parts, tmp_path, name):
    kind = type(type(parts[name]).__name__, (), {"__module__": "ppdiffusers.models"})
    pipe = ppsd3.StableDiffusion3Pipeline(**{**parts, "vae": parts["vae"]})
    setattr(pipe, name, kind())
    with pytest.raises(InputError, match=rf"'{name}' is a ppdiffusers {kind.__name__}, .*class of that name of ppsd3"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_int8(pipe):
    with refuses("int8", "text_encoder_3"):
        pipe.quantize("int8")
    assert not pipe.transformer.is_quantized
    pipe.text_encoder_3 = ppsd3.from_paddlenlp(pipe.text_encoder_3)
    pipe.quantize("int8", components="text_encoder_3")
    assert pipe.text_encoder_3.is_quantized


@pytest.mark.parametrize("prefix", ["text_encoder.", "lora_te1_", "text_encoders.clip_l.transformer."])
def test_lora(pipe, parts, prefix):
    shapes = loras.shapes_of(parts["text_encoder"], ("q_proj",))
    flat = (lambda name: name.replace(".", "_")) if prefix.endswith("_") else str
    tensors = {}
    for key, value in loras.low_rank(shapes).items():
        module, part = re.fullmatch(r"(.*)\.lora_([AB])\.weight", key).groups()
        tensors[f"{prefix}{flat(module)}.lora_{'down' if part == 'A' else 'up'}.weight"] = value
    with refuses("A LoRA for the text_encoder", "text_encoder"):
        pipe.load_lora_weights(tensors)
    pipe.text_encoder = ppsd3.from_paddlenlp(pipe.text_encoder)
    before = draw(pipe)
    pipe.load_lora_weights(tensors, adapter_name="one")
    assert np.abs(draw(pipe) - before).max() > 1e-4
    with pytest.raises(InputError, match=r"^An adapter needs .* Convert it with ppsd3\.from_paddlenlp\.$"):
        ppsd3.add_adapter(pipe.text_encoder_2, ppsd3.LoraConfig(target_modules=("q_proj",)))


def test_lora_for_the_transformer_alone(pipe, parts):
    tensors = loras.low_rank(loras.shapes_of(parts["transformer"]))
    pipe.load_lora_weights({f"transformer.{key}": value for key, value in tensors.items()}, adapter_name="one")
    assert pipe.get_list_adapters() == {"transformer": ["one"]}
    pipe.unload_lora_weights()


def test_textual_inversion(pipe):
    rows = np.ones([1, tiny.CLIP_L["hidden_size"]], np.float32)
    for name in ("text_encoder", "tokenizer"):
        with refuses("A textual inversion", name):
            pipe.load_textual_inversion(rows, token="<cat>", text_encoder="text_encoder")
        setattr(pipe, name, ppsd3.from_paddlenlp(getattr(pipe, name)))
    pipe.load_textual_inversion(rows, token="<cat>", text_encoder="text_encoder")
    assert pipe.tokenizer.has_token("<cat>")


def test_prompts_with_weights(pipe):
    pipe.prompt_reader = ppsd3.WeightedPrompts()
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        with refuses("A prompt with weights", name):
            draw(pipe, "a (red:1.4) circle")
        setattr(pipe, name, ppsd3.from_paddlenlp(getattr(pipe, name)))
    assert np.abs(draw(pipe, "a (red:1.4) circle") - draw(pipe, "a red circle")).max() > 1e-5


def test_what_is_cut_off_is_said(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        pipe.encode_prompt("a red circle " * 40, None, None, max_sequence_length=32)
    cut = [r.getMessage() for r in caplog.records if "cut the end off" in r.getMessage()]
    assert [message.split()[0] for message in cut] == ["tokenizer", "tokenizer_2", "tokenizer_3"]
    assert all(re.search(r"'.*red circle' was removed\.$", message) for message in cut)
    caplog.clear()
    pipe.encode_prompt("a red circle", None, None, max_sequence_length=32)
    assert not caplog.records


def test_a_tokenizer_that_only_makes_ids(pipe, parts):
    class Ids:
        model_max_length = 77

        def __call__(self, texts, padding, max_length, truncation):
            return parts["tokenizer"](texts, padding=padding, max_length=max_length, truncation=truncation)

    pipe.tokenizer = Ids()
    assert draw(pipe, "a red circle " * 40).shape
