"""Offloading on the test device: what is there, at most and afterwards, and the pictures of the CPU."""

import gc

import numpy as np
import paddle
import pytest
from helpers import device, ip_adapters, loras, sixteen_bits, tiny

import ppsd3
from ppsd3 import StableDiffusion3Pipeline, TorchGenerator
from ppsd3.utils.errors import InputError

pytestmark = pytest.mark.device

KINDS = ("model", "sequential")
PLACE = f"{device.NAME}:0"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("offloading") / "saved"
    tiny.make_pipeline(**tiny.SD35).save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Of the networks of other tests, which refer to themselves in circles."""
    gc.collect()
    device.count_from_here()


def load(directory, on=device.NAME, **options):
    paddle.set_device(on)
    pipe = StableDiffusion3Pipeline.from_pretrained(directory, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **changed):
    options = {"prompt": "a red circle", "negative_prompt": "blue", "height": 64, "width": 64, "output_type": "np"}
    options.update(num_inference_steps=2, generator=TorchGenerator(3))
    return pipe(**{**options, **changed}).images


@pytest.fixture(scope="module")
def expected(directory):
    picture = draw(load(directory, "cpu"))
    paddle.set_device(device.NAME)
    return picture


def enable(pipe, kind, **options):
    getattr(pipe, f"enable_{kind}_cpu_offload")(**options)
    return pipe


def size(layer):
    return sum(t.size * t.element_size() for t in {id(t): t for t in [*layer.parameters(), *layer.buffers()]}.values())


def is_there(pipe):
    """Names of the networks of which something is on the device."""
    return {
        name
        for name, part in pipe.components.items()
        if isinstance(part, paddle.nn.Layer)
        for tensor in [*part.parameters(), *part.buffers()]
        if not tensor.place.is_cpu_place()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loaded_on", ["cpu", device.NAME])
def test_pictures_are_those_of_the_cpu_and_nothing_stays(directory, expected, kind, loaded_on):
    pipe = enable(load(directory, loaded_on), kind, device=device.NAME)
    assert not is_there(pipe) and device.device_bytes() == 0
    assert str(pipe.device) == f"Place({PLACE})" and paddle.get_device() == PLACE
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    assert not is_there(pipe) and device.device_bytes() == 0


WIDE = {"attention_head_dim": 64, "num_attention_heads": 6, "caption_projection_dim": 384}
ONE = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0, "max_sequence_length": 8}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose activations, of a small picture, are few beside its weights."""
    paddle.set_device("cpu")
    path = tmp_path_factory.mktemp("wide") / "saved"
    tiny.make_pipeline(**tiny.SD35, **WIDE).save_pretrained(path)
    return str(path)


def largest(pipe, kind):
    parts = pipe.transformer.transformer_blocks if kind == "sequential" else [pipe.transformer]
    return max(map(size, parts))


@pytest.mark.parametrize("kind", KINDS)
def test_peak_is_what_is_in_use(wide, kind):
    pipe = enable(load(wide), kind)
    device.reset_peak()
    draw(pipe, **ONE)
    assert 0.99 * largest(pipe, kind) < device.peak_bytes() <= 1.1 * largest(pipe, kind)
    assert device.device_bytes() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_peak_of_weights_in_16_bits(wide, kind, monkeypatch):
    monkeypatch.setattr(sixteen_bits, "_raised", on_the_host)
    monkeypatch.setattr(sixteen_bits, "MOVES", set())  # without strides Paddle has fewer kernels for 16 bits
    with sixteen_bits.sixteen_bits():
        pipe = enable(load(wide, paddle_dtype="float16"), kind)
        assert pipe.dtype == pipe.transformer.proj_out.weight.dtype == paddle.float16
        device.reset_peak()
        assert np.isfinite(draw(pipe, **ONE)).all()
    assert 0.99 * largest(pipe, kind) < device.peak_bytes() <= 1.1 * largest(pipe, kind)
    assert not is_there(pipe)


def on_the_host(tensor):
    """What the emulation raises to float32 takes no memory of the device."""
    return paddle.cast(tensor.cpu(), "float32") if tensor.dtype in sixteen_bits.HALF else tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", ["offloading", "additions"])
def test_what_is_added_is_offloaded_too(directory, kind, first):
    paddle.set_device("cpu")
    picture = {"ip_adapter_image_embeds": paddle.ones([2, 6, ip_adapters.SIGLIP["hidden_size"]])}

    def add(pipe):
        pipe.load_lora_weights(loras.for_pipeline(pipe))
        pipe.load_ip_adapter(ip_adapters.tensors(5), image_encoder_folder=None)
        pipe.load_textual_inversion(np.ones([2, 16], "float32"), token="<cat>")

    plain = load(directory, "cpu")
    add(plain)
    expected = draw(plain, prompt="a red <cat>", **picture)
    pipe = load(directory)
    for step in (enable, add) if first == "offloading" else (add, enable):
        step(pipe, kind) if step is enable else step(pipe)
        kept = device.device_bytes()
    assert kept == 0 and not is_there(pipe)
    np.testing.assert_allclose(draw(pipe, prompt="a red <cat>", **picture), expected, atol=2e-5)
    assert device.device_bytes() == 0
    pipe.unload_ip_adapter()
    pipe.fuse_lora()
    fused = draw(pipe)
    assert device.device_bytes() == 0 and not is_there(pipe)
    pipe.unfuse_lora()
    np.testing.assert_allclose(draw(pipe), fused, atol=1e-4)
    assert device.device_bytes() == 0
    pipe.remove_all_hooks()
    pipe.unload_lora_weights()
    pipe.to(device.NAME)
    assert is_there(pipe) == {name for name, part in pipe.components.items() if isinstance(part, paddle.nn.Layer)}


def test_what_was_fused_before_leaves_the_device_too(directory):
    pipe = load(directory)
    pipe.load_lora_weights(loras.for_pipeline(pipe))
    before = draw(pipe)
    pipe.fuse_lora()
    enable(pipe, "model")
    assert device.device_bytes() == 0
    pipe.unfuse_lora()
    np.testing.assert_allclose(draw(pipe), before, atol=1e-5)
    pipe.fuse_lora()
    pipe.remove_all_hooks()
    pipe.to(device.NAME)
    pipe.unfuse_lora()
    assert all(not p.place.is_cpu_place() for p in pipe.transformer.parameters())


def controlnets(kind, number):
    nets = [
        tiny.randomize(ppsd3.SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 2}), n, 0.5) for n in range(number)
    ]
    for net in nets:
        net.eval()
    return nets if number > 1 else nets[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_controlnets_and_shared_networks(directory, kind, number):
    control = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype="uint8")
    own = {"control_image": control if number == 1 else [control] * number}
    paddle.set_device("cpu")
    make = ppsd3.StableDiffusion3ControlNetPipeline.from_pipe
    expected = draw(make(load(directory, "cpu"), controlnet=controlnets(kind, number)), **own)
    first = load(directory)
    controlled = make(first, controlnet=controlnets(kind, number))
    enable(controlled, kind)
    assert device.device_bytes() == 0 and str(first.device) == f"Place({PLACE})"
    np.testing.assert_allclose(draw(controlled, **own), expected, atol=2e-5)
    assert not is_there(controlled) and device.device_bytes() == 0
    late = make(first, controlnet=controlnets(kind, number))  # made on the device
    assert device.device_bytes() == 0
    np.testing.assert_allclose(draw(late, **own), expected, atol=2e-5)
    assert not is_there(late) and device.device_bytes() == 0


def test_both_kinds_in_turn(directory, expected):
    pipe = load(directory)
    for kind in ("model", "model", "sequential", "sequential", "model"):
        enable(pipe, kind)
        assert device.device_bytes() == 0
        np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"remove_all_hooks\(\)"):
        pipe.to(device.NAME)
    pipe.to("cpu")
    assert paddle.get_device() == PLACE and pipe._residency.place is not None
    pipe.remove_all_hooks()
    assert str(pipe.device) == "Place(cpu)"
    pipe.to(device.NAME)
    assert str(pipe.device) == f"Place({PLACE})"
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    pipe.to("cpu")
    assert paddle.get_device() == "cpu" and device.device_bytes() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_after_an_interruption_nothing_is_there(directory, expected, kind, error):
    pipe = enable(load(directory), kind)

    def fail(*arguments):
        raise error

    with pytest.raises(error):
        draw(pipe, callback_on_step_end=fail)
    assert device.device_bytes() == 0
    block = pipe.transformer.transformer_blocks[1]
    forward, block.ff.forward = block.ff.forward, fail
    with pytest.raises(error):
        draw(pipe)
    assert not is_there(pipe)
    block.ff.forward = forward
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    assert device.device_bytes() == 0


@pytest.mark.parametrize("way", ["to", "model", "sequential", "on demand"])
def test_inputs_of_any_device(directory, way):
    """Masks, pictures, latents, embeddings, generators and callbacks give what they give on the CPU."""
    inpaint = ppsd3.StableDiffusion3InpaintPipeline
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (64, 64, 3), dtype="uint8")
    latents, mask = rng.standard_normal((1, 4, 16, 16)).astype("float32"), np.zeros((64, 64), "float32")
    mask[10:40] = 1.0

    def all_of(pipe, place):
        seen = []

        def look(pipe, step, t, tensors):
            seen.append(str(tensors["latents"].place))
            return {"latents": tensors["latents"] * 0.9}

        positive, negative, pooled, negative_pooled = pipe.encode_prompt("a red circle", None, None)
        embeds = {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative,
        }
        embeds.update(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=negative_pooled)
        embeds = {name: value if value is None else paddle.to_tensor(value.numpy(), place=place)
                  for name, value in embeds.items()}  # fmt: skip
        painted = inpaint.from_pipe(pipe)
        painted.set_progress_bar_config(disable=True)
        return [
            draw(pipe, latents=paddle.to_tensor(latents, place=place), callback_on_step_end=look),
            pipe(
                height=64, width=64, num_inference_steps=2, output_type="np", generator=TorchGenerator(1), **embeds
            ).images,
            draw(painted, image=picture, mask_image=paddle.to_tensor(mask, place=place), strength=0.8),
            draw(pipe, output_type="latent").numpy(),
            draw(pipe, generator=[TorchGenerator(5)]),
        ]

    paddle.set_device("cpu")
    expected = all_of(load(directory, "cpu"), paddle.CPUPlace())
    if way == "on demand":
        pipe = load(directory, load_components="on_demand")
    elif way == "to":
        pipe = load(directory, "cpu").to(device.NAME)
    else:
        pipe = enable(load(directory), way)
    assert str(pipe.device) == f"Place({PLACE})" and paddle.get_device() == PLACE
    for place in (paddle.CPUPlace(), paddle.CustomPlace(device.NAME, 0)):
        for got, wanted in zip(all_of(pipe, place), expected):
            np.testing.assert_allclose(got, wanted, atol=1e-4)  # latents are up to 10


def test_on_demand_keeps_nothing_there(wide):
    pipe = load(wide, load_components="on_demand")
    pipe.load_ip_adapter(ip_adapters.tensors(5, width=384, head_dim=64), image_encoder_folder=None)
    assert device.device_bytes() == 0
    features = paddle.ones([1, 6, ip_adapters.SIGLIP["hidden_size"]])
    kept = device.device_bytes()
    with pipe.using("transformer") as transformer:
        network = size(transformer)  # with its adapter
    device.reset_peak()
    draw(pipe, ip_adapter_image_embeds=features, **ONE)
    assert 0.99 * network < device.peak_bytes() <= 1.1 * network
    assert device.device_bytes() == kept
    assert str(pipe.device) == f"Place({PLACE})"


def test_one_network_moves_by_itself(directory):
    paddle.set_device("cpu")
    network = load(directory, "cpu").transformer
    for target in (device.NAME, PLACE, paddle.CustomPlace(device.NAME, 0)):
        assert str(network.to(target).device) == f"Place({PLACE})"
        assert device.device_bytes() == size(network)
        assert network.to("cpu").device.is_cpu_place() and device.device_bytes() == 0
    with pytest.raises(InputError, match="device"):
        network.to(f"{device.NAME}:7")
