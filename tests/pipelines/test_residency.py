"""Networks on demand and on loan: the same picture, nothing left behind, and clear refusals."""

import copy
import gc
import os

import numpy as np
import paddle
import pytest
from helpers import tiny

import ppsd3
from ppsd3 import StableDiffusion3Pipeline, TorchGenerator
from ppsd3.loaders import loan as loan_module
from ppsd3.loaders.loan import Loan
from ppsd3.loaders.single_file import NETWORKS
from ppsd3.pipelines import residency
from ppsd3.pipelines.residency import ModelOffload, OnDemandNetwork, SequentialOffload
from ppsd3.utils.errors import CheckpointNotFoundError, InputError
from ppsd3.utils.paddle_internals import copy_to, place_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline") / "saved"
    tiny.make_pipeline().save_pretrained(path)
    return str(path)


def load(directory, **options):
    pipe = StableDiffusion3Pipeline.from_pretrained(directory, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe):
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np", "negative_prompt": "blue"}
    return pipe("a red circle", generator=TorchGenerator(3), **options).images


def has_weights(network):
    return any(tensor._is_initialized() for tensor in [*network.parameters(), *network.buffers()])


def test_on_demand_draws_the_same_and_keeps_nothing(directory, monkeypatch):
    expected = draw(load(directory))
    pipe = load(directory, load_components="on_demand")
    alive = []
    for class_ in {part.network_class for part in pipe.components.values() if isinstance(part, OnDemandNetwork)}:

        def from_pretrained(*args, load=class_.from_pretrained, **options):
            assert not any(map(has_weights, alive)), "two networks are in memory"
            alive.append(load(*args, **options))
            assert has_weights(alive[-1])
            return alive[-1]

        monkeypatch.setattr(class_, "from_pretrained", from_pretrained)
    assert np.array_equal(draw(pipe), expected)
    assert len(alive) == 5 and not any(map(has_weights, alive))


def test_on_demand_knows_configurations_and_dtypes(directory):
    here, pipe = load(directory), load(directory, load_components="on_demand")
    for name in ("transformer", "vae", "text_encoder_3"):
        assert getattr(pipe, name).config == getattr(here, name).config
        assert getattr(pipe, name).dtype == paddle.float32
    with pipe.using("vae") as outer, pipe.using("vae") as inner:
        assert outer is inner
    with pytest.raises(AttributeError, match="on demand"):
        pipe.transformer.state_dict()


def test_on_demand_out_of_a_single_file(directory, tmp_path, monkeypatch):
    file = ppsd3.convert(directory, tmp_path / "all.safetensors")
    own = os.path.join(directory, "text_encoder_2")  # a network of its own, in a directory

    def load_file(**options):
        pipe = StableDiffusion3Pipeline.from_single_file(file, config=directory, text_encoder_2=own, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    expected, read, alive = draw(load(directory)), [], []
    for class_ in {NETWORKS[name] for name in NETWORKS}:

        def from_source(*args, make=class_.from_source, **options):
            assert not any(map(has_weights, alive)), "two networks are in memory"
            alive.append(make(*args, **options))
            read.append(type(alive[-1]).__name__)
            return alive[-1]

        monkeypatch.setattr(class_, "from_source", from_source)
    pipe = load_file(load_components="on_demand")
    assert not read and pipe.transformer.config.num_layers == 3
    assert np.array_equal(draw(pipe), expected)
    clip = "CLIPTextModelWithProjection"
    assert read == [clip, clip, "T5EncoderModel", "SD3Transformer2DModel", "AutoencoderKL"]
    assert not any(map(has_weights, alive))
    alive.clear()
    gc.collect()
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps:
            assert "all.safetensors" not in maps.read()  # between calls the file is not even mapped
    monkeypatch.undo()

    pipe.save_pretrained(tmp_path / "saved")
    assert np.array_equal(draw(load(tmp_path / "saved")), expected)
    held = load_file(load_components="on_demand", storage_dtype="float16")
    assert np.array_equal(draw(held), draw(load_file(storage_dtype="float16")))
    with held.using("transformer") as transformer:
        assert transformer.transformer_blocks[0].attn.to_q.weight.dtype == paddle.float16
    assert pipe.text_encoder.fingerprint() != held.text_encoder.fingerprint()
    assert pipe.text_encoder.fingerprint() == load_file(load_components="on_demand").text_encoder.fingerprint()
    with pytest.raises(InputError, match="'all' or 'on_demand'"):
        load_file(load_components="lazily")
    os.remove(file)
    with pytest.raises(CheckpointNotFoundError, match=r"all.safetensors"):
        draw(pipe)


def test_on_demand_is_saved_as_any_other(directory, tmp_path):
    load(directory, load_components="on_demand").save_pretrained(tmp_path / "again")
    assert np.array_equal(draw(load(tmp_path / "again")), draw(load(directory)))


def test_weights_held_in_16_bits(directory):
    pipe = load(directory, storage_dtype={"transformer": "float16"})
    assert np.abs(draw(pipe) - draw(load(directory))).max() < 0.01
    assert not np.array_equal(draw(pipe), draw(load(directory)))


@pytest.mark.parametrize("load_components", ["all", "on_demand"])
def test_vae_in_tiles_and_slices(directory, load_components):
    pipe = load(directory, load_components=load_components)
    whole = draw(pipe)
    pipe.enable_vae_tiling(tile_sample_min_size=32)
    tiled = draw(pipe)
    assert 0 < np.abs(tiled - whole).max()
    pipe.disable_vae_tiling()
    pipe.enable_vae_slicing()
    assert np.abs(draw(pipe) - whole).max() < 1e-5
    pipe.disable_vae_slicing()
    assert np.array_equal(draw(pipe), whole)


def test_refusals(directory):
    with pytest.raises(InputError, match="'all' or 'on_demand'"):
        load(directory, load_components="lazily")
    with pytest.raises(InputError, match=r"storage_dtype is for .'unet'."):
        load(directory, storage_dtype={"unet": "float16"})
    with pytest.raises(InputError, match="float16 or bfloat16"):
        load(directory, storage_dtype="int4")
    pipe = load(directory, load_components="on_demand")
    for change in (lambda: pipe.quantize("int8"), lambda: pipe.to("float16"), pipe.enable_model_cpu_offload):
        with pytest.raises(InputError, match="on demand"):
            change()
    with pytest.raises(InputError, match="load_components='on_demand'"):
        load(directory).enable_sequential_cpu_offload("gpu:7")


# Offloading without a GPU: the computer's own memory stands for the device, and weights at home are made useless.


class PoisonedLoan(Loan):
    """Weights that are not on loan are NaN."""

    begun = 0

    def __init__(self, tensors, place):
        super().__init__(tensors, place)
        self.values = [tensor.numpy() for tensor in tensors]
        self.end()

    def begin(self, user=None, blocking=True):
        type(self).begun += 1
        first = not self.users
        super().begin(user, blocking)
        for tensor, value in zip(self.tensors, self.values if first else ()):
            tensor.set_value(value)

    def end(self, user=None):
        super().end(user)
        if not self.users:
            for tensor in self.tensors:
                tensor.set_value(paddle.full_like(tensor, float("nan")))


def test_parts_compute_with_what_they_have_on_loan(directory, monkeypatch):
    expected = draw(load(directory))
    pipe = load(directory)
    monkeypatch.setattr(residency, "Loan", PoisonedLoan)
    PoisonedLoan.begun = 0
    SequentialOffload(pipe._networks(), place_of("cpu"))
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)
    assert PoisonedLoan.begun > 30


@pytest.mark.parametrize("kind", [ModelOffload, SequentialOffload])
def test_offloading_begins_and_ends(directory, kind):
    expected, pipe = draw(load(directory)), load(directory)
    there = pipe.transformer.proj_out.weight.data_ptr()
    kind(pipe._networks(), place_of("cpu"))
    sharing = [StableDiffusion3Pipeline.from_pipe(pipe), StableDiffusion3Pipeline(**pipe.components)]
    assert pipe._residency.place is not None and all(other._residency is pipe._residency for other in sharing)
    np.testing.assert_allclose(draw(sharing[0]), expected, atol=1e-5)
    assert pipe.transformer.proj_out.weight.data_ptr() == there
    with pytest.raises(InputError, match=r"cpu by themselves.*remove_all_hooks"):
        sharing[1]._refuse_moving_offloaded("gpu")
    assert pipe.to("cpu", dtype="float32") is pipe and pipe._residency.place is not None
    sharing[0].remove_all_hooks()
    assert all(other._residency.place is None for other in [pipe, *sharing])
    assert not any("forward" in vars(layer) for layer in pipe.transformer.sublayers(include_self=True))
    assert pipe.transformer.proj_out.weight.data_ptr() == there
    pipe.remove_all_hooks()  # changes nothing
    assert np.array_equal(draw(pipe), expected)


@pytest.mark.parametrize("kind", [ModelOffload, SequentialOffload])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_gives_the_loan_back(directory, kind, error):
    pipe = load(directory)
    parameters = pipe.transformer.parameters()
    homes = [parameter.data_ptr() for parameter in parameters]
    kind(pipe._networks(), place_of("cpu"))
    block = pipe.transformer.transformer_blocks[1]
    norm_forward, seen = block.norm2.forward, []

    def fail(*inputs):
        seen.extend(p.data_ptr() != home for p, home in zip(parameters, homes))
        raise error

    block.norm2.forward = fail
    with pytest.raises(error):
        draw(pipe)
    assert any(seen) and all(seen) == (kind is ModelOffload)
    assert [parameter.data_ptr() for parameter in parameters] == homes
    if kind is SequentialOffload:  # outside of a pipeline's call, too
        with pytest.raises(error):
            block.norm2(paddle.ones([1, 32]))
        tokens = paddle.ones([1, 4, 32])
        with pytest.raises(error):
            block(tokens, tokens, paddle.ones([1, 32]))
        assert [parameter.data_ptr() for parameter in parameters] == homes
    block.norm2.forward = norm_forward
    np.testing.assert_allclose(draw(pipe), draw(load(directory)), atol=1e-5)


def test_a_loan_that_cannot_begin_is_none(monkeypatch):
    layer = paddle.nn.Linear(3, 3)
    before, copies = [p.data_ptr() for p in layer.parameters()], []

    def fail_at_the_second(tensor, place, blocking):
        copies.append(tensor)
        if len(copies) == 2:
            raise MemoryError("the device is full")
        return copy_to(tensor, place, blocking)

    monkeypatch.setattr(loan_module, "copy_to", fail_at_the_second)
    loan = Loan(layer.parameters(), place_of("cpu"))
    with pytest.raises(MemoryError):
        loan.begin()
    assert [p.data_ptr() for p in layer.parameters()] == before and not loan.users
    loan.begin()
    assert [p.data_ptr() for p in layer.parameters()] != before
    loan.end_all()
    assert [p.data_ptr() for p in layer.parameters()] == before


def test_after_a_loan_tensors_have_their_own_memory_again():
    layer = paddle.nn.Linear(3, 3)
    before, value = layer.weight.data_ptr(), layer.weight.numpy()
    loan = Loan([layer.weight], place_of("cpu"))
    loan.begin()
    assert layer.weight.data_ptr() != before and (layer.weight.numpy() == value).all()
    loan.begin("another")
    loan.end()
    assert layer.weight.data_ptr() != before
    loan.end("another")
    assert layer.weight.data_ptr() == before


def test_sequential_offloading_is_not_for_graphs_and_copies(directory):
    pipe = load(directory).compile("transformer")
    with pytest.raises(InputError, match="transformer run as static graphs"):
        pipe.enable_sequential_cpu_offload()
    pipe = load(directory)
    SequentialOffload(pipe._networks(), place_of("cpu"))
    with pytest.raises(InputError, match="cannot be copied"):
        copy.deepcopy(pipe.transformer)
    with pytest.raises(InputError, match="static graph cannot bring"):
        draw(pipe.compile("transformer"))
