"""Attention on GPUs: by compute capability and dtype, with stand-ins that refuse what Paddle's kernels refuse."""

import numpy as np
import paddle
import pytest
from helpers import gpus, ip_adapters, tiny
from PIL import Image

import ppsd3
from ppsd3.compilation import CompiledFunction
from ppsd3.ops import attention, dispatch, proving, use_kernels
from ppsd3.ops.dispatch import reference

BATCH, HEADS, TOKENS, WIDTH = 2, 3, 24, 16
BIASES = [None, (1, 1), (1, HEADS), (BATCH, 1), (BATCH, HEADS)]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Makes and enters a stand-in."""
    with monkeypatch.context() as patch:
        yield lambda **options: gpus.StandInGPU(patch, tmp_path, **options).__enter__()
    gpus.StandInGPU.forget()


def tensor(*shape, seed=0, dtype="float32"):
    return paddle.to_tensor(np.random.RandomState(seed).standard_normal(shape).astype("float32")).astype(dtype)


def qkv(tokens=TOKENS, width=WIDTH, dtype="float32"):
    return [tensor(BATCH, tokens, HEADS, width, seed=seed, dtype=dtype) for seed in range(3)]


def same(one, other, tolerance=1e-5):
    np.testing.assert_allclose(*(x.astype("float32").numpy() for x in (one, other)), atol=tolerance)


class TestWays:
    def chosen(self, arguments, **options):
        return dispatch.choose("attention", *arguments, **options).name

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @pytest.mark.parametrize("capability", [gpus.AMPERE, (8, 6), (12, 0)])
    def test_16_bits_from_ampere_on(self, gpu, capability, dtype):
        gpu(capability=capability)
        assert self.chosen(qkv(dtype=dtype)) == "flash"

    @pytest.mark.parametrize(
        "capability, dtype", [(gpus.AMPERE, "float32"), (gpus.TURING, "float16"), (gpus.VOLTA, "float32")]
    )
    def test_what_flash_attention_is_not_made_for(self, gpu, capability, dtype):
        gpu(capability=capability)
        assert self.chosen(qkv(dtype=dtype)) == "memory-efficient"

    def test_what_neither_takes(self, gpu):
        gpu(capability=gpus.VOLTA)
        q, k, v = qkv(77)
        assert self.chosen([q, k, v, tensor(1, 1, 77, 77)]) == "in blocks"  # rows of 77 are not aligned
        assert self.chosen(qkv(dtype="bfloat16")) == "in blocks"  # the kernel refuses it there
        assert self.chosen([q, k[:, :8], v[:, :8]], causal=True) == "in blocks"

    @pytest.mark.parametrize("width", [6, 260])
    def test_heads_that_flash_attention_does_not_take(self, gpu, width):
        gpu()
        assert self.chosen(qkv(width=width, dtype="float16")) == "memory-efficient"

    def test_a_bias_that_learns(self, gpu):
        """T5's bias of positions: Paddle's kernels would leave it without a gradient."""
        gpu(computes_16_bits_in="float32")
        bias = tensor(1, HEADS, TOKENS, TOKENS)
        bias.stop_gradient = False
        assert self.chosen([*qkv(), bias]) == "in blocks"
        attention(*qkv(), bias).square().sum().backward()
        assert np.abs(bias.grad.numpy()).max() > 1e-3

    def test_what_is_not_the_card_s_is_left_out(self, gpu):
        gpu(capability=gpus.TURING)
        shown = [line for line in dispatch.summary() if line.startswith("attention:")]
        assert "memory-efficient (not tried yet) > in blocks" in shown[0]
        assert "compute capability 7.5; made for 8.0 and later: flash" in shown[0]
        attention(*qkv())
        shown = [line for line in dispatch.summary() if line.startswith("attention:")]
        assert "memory-efficient (float32, heads of 16: used)" in shown[0]

    def test_a_device_that_is_no_gpu_has_the_blocks(self, monkeypatch):
        monkeypatch.setattr(dispatch, "kind_of", lambda tensors: ("other", "float16"))
        assert self.chosen(qkv()) == "in blocks"

    def test_the_level_reference_is_the_definition(self, gpu):
        gpu()
        with use_kernels("reference"):
            assert self.chosen(qkv(dtype="float16")) == "reference"


@pytest.mark.parametrize("way", ["flash", "memory-efficient", "in blocks"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", BIASES, ids=str)
def test_every_argument_reaches_the_kernel_as_it_takes_it(gpu, monkeypatch, way, bias, causal):
    card = gpu(computes_16_bits_in="float32", capability=gpus.AMPERE if way == "flash" else gpus.VOLTA)
    if way == "in blocks":
        monkeypatch.setattr(gpus.ATTENTION, "_MAX_SCORES", 7 * BATCH * HEADS * TOKENS)
    bias = None if bias is None else tensor(*bias, TOKENS, TOKENS, seed=3)
    with use_kernels(attention=way):
        if way == "in blocks":
            assert dispatch.choose("attention", *qkv(), bias, causal).name == way
        for scale in (None, 1.0):
            same(attention(*qkv(), bias, causal, scale), reference(attention)(*qkv(), bias, causal, scale))
    assert card.calls == ([] if way == "in blocks" else [way] * 2)


def test_gradients_through_each_way(gpu):
    for capability in (gpus.AMPERE, gpus.VOLTA):
        card = gpu(computes_16_bits_in="float32", capability=capability)
        found = []
        for function in (attention, reference(attention)):
            inputs = qkv()
            for x in inputs:
                x.stop_gradient = False
            function(*inputs, tensor(1, 1, TOKENS, TOKENS)).square().sum().backward()
            found.append([x.grad for x in inputs])
        for ours, expected in zip(*found):
            same(ours, expected, 1e-4)
        assert len(card.calls) == 1


def test_flash_attention_3_by_its_flag_on_hopper_alone(gpu, monkeypatch):
    monkeypatch.setattr(proving, "_SLOWER", 1e9)
    flags = gpus.StandInGPU.flags(monkeypatch, FLAGS_flash_attn_version=2)
    seen = []

    def flash_attention(query, key, value, dropout=0.0, causal=False, return_softmax=False):
        seen.append(flags["FLAGS_flash_attn_version"])
        return gpus.in_float32(query, key, value, None, causal), None

    monkeypatch.setattr(paddle.nn.functional.flash_attention, "flash_attention", flash_attention)
    for capability, name in ((gpus.AMPERE, "flash"), ((12, 0), "flash"), (gpus.HOPPER, "flash 3")):
        gpu(capability=capability, computes_16_bits_in="float32")
        assert dispatch.choose("attention", *qkv()).name == name
    same(attention(*qkv(), None, True, 1.0), reference(attention)(*qkv(), None, True, 1.0))
    assert set(seen) == {3} and flags == {"FLAGS_flash_attn_version": 2}
    assert dispatch.choose("attention", *qkv(), tensor(1, 1, TOKENS, TOKENS)).name == "flash"  # it takes no bias


def test_blocks_bound_the_memory(monkeypatch):
    """Of 4,429 tokens, as of a picture of 1024x1024 and its text, never all scores of all heads."""
    monkeypatch.setattr(gpus.ATTENTION, "_MAX_SCORES", 2**12)
    in_blocks = dispatch.implementation("attention", "in blocks").function
    sizes, matmul = [], paddle.matmul
    monkeypatch.setattr(
        paddle, "matmul", lambda *a, **k: (lambda y: sizes.append(int(np.prod(y.shape))) or y)(matmul(*a, **k))
    )
    q, k, v = qkv(100)
    bias = tensor(BATCH, 1, 100, 100)
    ours = in_blocks(q, k, v, bias)
    assert max(sizes) <= 2**12 and len(sizes) == 2 * -(-100 // (2**12 // (BATCH * HEADS * 100)))
    same(ours, reference(attention)(q, k, v, bias))


def test_under_automatic_mixed_precision(gpu):
    """What AMP has cast to 16 bits goes to flash attention."""
    card = gpu()
    with paddle.amp.auto_cast(dtype="bfloat16"):
        assert dispatch.choose("attention", *qkv(dtype="bfloat16")).name == "flash"
    assert card.calls == []


def test_a_graph_that_is_traced_tries_its_ways_too(gpu):
    card = gpu(computes_16_bits_in="float32")
    taken = []

    def attend(q, k, v):
        taken.append(dispatch.choose("attention", q, k, v).name)
        return reference(attention)(q, k, v)

    specs = [paddle.static.InputSpec([-1, -1, HEADS, WIDTH], "float32")] * 3
    same(CompiledFunction(paddle.nn.Layer(), attend, specs)(*qkv()), reference(attention)(*qkv()))
    assert set(taken) == {"flash"} and card.calls == []


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (tiny.SIDE, tiny.SIDE, 3), dtype="uint8"))


def everything(tmp_path):
    """SD3.5-medium's second attention, an IP-adapter, a skipped layer and perturbed attention."""
    pipe = tiny.make_pipeline(qk_norm="rms_norm", dual_attention_layers=(0,))
    pipe.load_ip_adapter(ip_adapters.write(tmp_path / "adapter", 4))
    guidance = ppsd3.PerturbedAttentionGuidance(ppsd3.SkipLayerGuidance(4.0, [1], start=-1.0), [2])
    return pipe, {"ip_adapter_image": picture(), "guidance": guidance}


def controlled(tmp_path):
    net = tiny.randomize(ppsd3.SD3ControlNetModel(**{**tiny.TRANSFORMER, "num_layers": 2}), 30, 0.5)
    net.eval()
    pipe = ppsd3.StableDiffusion3ControlNetPipeline(**tiny.make_components(), controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"control_image": picture()}


@pytest.mark.parametrize(
    "make, capability",
    [(everything, gpus.AMPERE), (controlled, gpus.AMPERE), (everything, gpus.VOLTA)],
    ids=["everything, flash", "controlled, flash", "everything, memory-efficient"],
)
def test_pictures_of_whole_pipelines(gpu, monkeypatch, tmp_path, make, capability):
    """CLIP (a causal bias of one row), T5 (a bias of heads), the MM-DiT and what adds to it, two prompts at a time."""
    monkeypatch.setattr(proving, "_seconds", lambda *_: (1, 0))  # the others' trials are not what is tested
    pipe, settings = make(tmp_path)
    settings = {"num_inference_steps": 1, "max_sequence_length": 16, "output_type": "np", **settings}

    def draw():
        generators = [ppsd3.TorchGenerator(i) for i in (0, 1)]
        return pipe(["a red circle", "blue"], generator=generators, **settings).images

    card = gpu(computes_16_bits_in="float32", capability=capability)
    drawn = draw()
    assert len(card.calls) >= 10 and set(card.calls) <= {"flash", "memory-efficient"}
    assert ("flash" in card.calls) == (capability >= gpus.AMPERE)
    with use_kernels("reference"):
        assert np.abs(draw() - drawn).max() < 2e-3
