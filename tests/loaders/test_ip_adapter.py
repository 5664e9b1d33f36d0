"""IP-adapters as files hold them: where they are found, what fits, and the forms that a transformer may be in."""

import numpy as np
import paddle
import pytest
from helpers import ip_adapters, loras, tiny

import ppsd3
from ppsd3.models.attention_processor import JointAttnProcessor2_5
from ppsd3.ops import CastingLinear, QuantizedLinear
from ppsd3.utils.errors import CheckpointFormatError, CheckpointNotFoundError, InputError, WeightMismatchError

ATTENTIONS = tiny.TRANSFORMER["num_layers"]


@pytest.fixture(scope="module")
def named():
    return ip_adapters.tensors(ATTENTIONS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return ip_adapters.write(tmp_path_factory.mktemp("ip") / "adapter", ATTENTIONS)


@pytest.fixture
def pipe():
    return tiny.make_pipeline()


def values(pipe):
    return {name: tensor.numpy() for name, tensor in pipe.ip_adapter.state_dict().items()}


def assert_holds(pipe, named):
    held = values(pipe)
    assert set(held) == set(named)
    assert all(np.array_equal(held[name], value) for name, value in named.items())


def nested(named):
    parts = {"image_proj": {}, "ip_adapter": {}}
    for name, value in named.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = value
    return parts


FORMS = {
    "arrays": lambda named: named,
    "nested": nested,
    "tensors": lambda named: {name: paddle.to_tensor(value) for name, value in named.items()},
    "InstantX's names": ip_adapters.with_original_names,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_dict(pipe, named, form):
    pipe.load_ip_adapter(FORMS[form](named), image_encoder_folder=None)
    assert_holds(pipe, named)
    assert pipe.image_encoder is None


def test_places(named, adapter, tmp_path):
    """A directory, a file in it, another name, a subfolder, and image encoders elsewhere."""
    elsewhere = tmp_path / "sub"
    ip_adapters.write_file(elsewhere, named)
    (elsewhere / ip_adapters.FILE).rename(elsewhere / "other.safetensors")
    for given, options in (
        (adapter, {}),
        (str(adapter / ip_adapters.FILE), {}),
        (adapter.parent, {"subfolder": "adapter"}),
        (adapter.parent, {"subfolder": "adapter", "image_encoder_folder": "adapter/image_encoder"}),
    ):
        pipe = tiny.make_pipeline()
        pipe.load_ip_adapter(given, **options)
        assert_holds(pipe, named)
        assert pipe.feature_extractor.config.size["height"] == pipe.image_encoder.config.image_size == 28
    pipe = tiny.make_pipeline()
    pipe.load_image_encoder(adapter / "image_encoder")
    encoder = pipe.image_encoder
    pipe.load_ip_adapter(tmp_path, subfolder="sub", weight_name="other.safetensors")
    assert_holds(pipe, named)
    assert pipe.image_encoder is encoder


def test_components_that_are_there_stay(pipe, adapter):
    pipe.image_encoder = own = ppsd3.SiglipVisionModel.from_pretrained(adapter, subfolder="image_encoder")
    pipe.load_ip_adapter(adapter)
    assert pipe.image_encoder is own and pipe.feature_extractor is not None


def test_a_deeper_projection(pipe):
    deep = ip_adapters.tensors(ATTENTIONS, depth=6)
    pipe.load_ip_adapter(deep, image_encoder_folder=None)
    assert_holds(pipe, deep)


def test_what_cannot_be_found(pipe, adapter, named, tmp_path):
    ip_adapters.write_file(tmp_path, named)
    with pytest.raises(
        CheckpointNotFoundError, match=r"image_encoder does not exist.*load_image_encoder.*image_encoder_folder=None"
    ):
        pipe.load_ip_adapter(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"has no ip.safetensors; it has ip-adapter.safetensors"):
        pipe.load_ip_adapter(tmp_path, weight_name="ip.safetensors")
    with pytest.raises(InputError, match="dict of tensors brings no image encoder"):
        pipe.load_ip_adapter(named)
    for given, options in ((tmp_path, {"weight_name": "ip-adapter.bin"}), (tmp_path / "ip-adapter.bin", {})):
        with pytest.raises(CheckpointFormatError, match=r"pickle.*safetensors"):
            pipe.load_ip_adapter(given, **options)
    assert pipe.ip_adapter is None and pipe.image_encoder is None  # failures leave nothing behind


def without(named, end):
    return {name: value for name, value in named.items() if not name.endswith(end)}


WRONG = {
    "another model": (
        {"to_q_lora.down.weight": np.zeros([2, 2], "float32")},
        CheckpointFormatError,
        "is a LoRA. Load it with load_lora_weights",
    ),
    "another depth": (ip_adapters.tensors(ATTENTIONS + 2), WeightMismatchError, "5 attentions.*this one has 3"),
    "another width": (ip_adapters.tensors(ATTENTIONS, width=40), WeightMismatchError, "width 40.*of width 32"),
    "incomplete": (without(ip_adapters.tensors(ATTENTIONS), "norm_ip_k.weight"), WeightMismatchError, "3 missing"),
    "more": ({**ip_adapters.tensors(ATTENTIONS), "image_proj.x": np.zeros(2)}, WeightMismatchError, "image_proj.x"),
    "no tensors": ({"image_proj.latents": "x"}, InputError, "image_proj.latents. is a str"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit(pipe, name):
    tensors, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        pipe.load_ip_adapter(tensors, image_encoder_folder=None)
    assert pipe.ip_adapter is None


def test_a_processor_that_it_cannot_add_to(pipe, adapter):
    class Own:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None):
            return hidden_states, encoder_hidden_states

    pipe.transformer.set_attn_processor(Own())
    with pytest.raises(InputError, match="is a Own"):
        pipe.load_ip_adapter(adapter)
    assert pipe.ip_adapter is None and pipe.image_encoder is None and pipe.feature_extractor is None
    pipe.transformer.set_attn_processor(JointAttnProcessor2_5())
    pipe.load_ip_adapter(adapter)
    pipe.transformer.set_attn_processor(
        {**pipe.transformer.attn_processors, "transformer_blocks.1.attn.processor": Own()}
    )
    with pytest.raises(InputError, match="'ip_hidden_states'"):
        draw(pipe)


def draw(pipe, **settings):
    embeds = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 4, 24)).astype("float32"))
    settings = {"num_inference_steps": 2, "output_type": "latent", "ip_adapter_image_embeds": embeds, **settings}
    return pipe("a star", generator=ppsd3.TorchGenerator(0), max_sequence_length=16, **settings).images.numpy()


def test_int8_is_for_the_transformer_alone(pipe, named):
    pipe.load_ip_adapter(named, image_encoder_folder=None)
    plain = draw(pipe)
    pipe.transformer.quantize("int8")
    assert not any(isinstance(layer, QuantizedLinear) for layer in pipe.ip_adapter.sublayers())
    assert 0 < np.abs(draw(pipe) - plain).max() < 0.1 * np.abs(plain).max()


def test_weights_held_in_16_bits(pipe, named):
    pipe.load_ip_adapter(named, image_encoder_folder=None)
    plain = draw(pipe)
    held = tiny.make_pipeline()
    held.transformer.enable_layerwise_casting("float16")
    held.load_ip_adapter(named, image_encoder_folder=None)
    assert isinstance(held.ip_adapter.ip_adapter[0].to_k_ip, CastingLinear)
    assert 0 < np.abs(draw(held) - plain).max() < 0.1


def test_together_with_a_lora(pipe, named):
    pipe.load_ip_adapter(named, image_encoder_folder=None)
    plain = draw(pipe)
    tensors = loras.for_pipeline(pipe)
    assert not any("ip_adapter" in name for name in tensors)
    pipe.load_lora_weights(tensors)
    both = draw(pipe)
    assert np.abs(both - plain).max() > 1e-3
    pipe.fuse_lora()
    assert np.abs(draw(pipe) - both).max() < 1e-4
    pipe.unload_ip_adapter()
    assert np.abs(draw(pipe, ip_adapter_image_embeds=None) - both).max() > 1e-3


def test_moved_with_the_transformer(pipe, named):
    pipe.load_ip_adapter(named, image_encoder_folder=None)
    pipe.transformer.to(dtype="float16")
    assert {tensor.dtype for tensor in pipe.ip_adapter.parameters()} == {paddle.float16}


def test_trained_weights_are_read_again(pipe, named):
    """``state_dict`` of the adapter is what its file holds."""
    pipe.load_ip_adapter(named, image_encoder_folder=None)
    embeds, time = paddle.ones([1, 4, 24]), paddle.to_tensor([500.0])
    latents, text, pooled = paddle.ones([1, 4, 16, 16]), paddle.ones([1, 3, 40]), paddle.ones([1, 28])
    kwargs = {"ip_adapter_image_embeds": embeds}
    pipe.transformer(latents, text, pooled, time, joint_attention_kwargs=kwargs).sample.square().mean().backward()
    gradients = {name: p.grad for name, p in pipe.ip_adapter.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    changed = {name: value.numpy() * 2 for name, value in pipe.ip_adapter.state_dict().items()}
    other = tiny.make_pipeline()
    other.load_ip_adapter(changed, image_encoder_folder=None)
    assert_holds(other, changed)
