"""What is said of builds of Paddle and of cards: which runs on which, and what to install."""

import runpy
import sys

import paddle
import pytest

import ppsd3
from ppsd3.utils import gpu
from ppsd3.utils.device import usable_device
from ppsd3.utils.errors import InputError
from ppsd3.utils.gpu import Card, GpuBuild

FROM_PYPI = GpuBuild("2.6.2", "11.8", "8.6.0", ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6)))
H100 = Card(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 * 10**9)
RTX_5090 = Card(0, "NVIDIA GeForce RTX 5090", (12, 0), 32 * 10**9)


@pytest.mark.parametrize(
    "capability, runs",
    [((6, 0), False), ((6, 1), True), ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), False), ((5, 2), False)],
)
def test_newer_cards_of_a_generation_run_older_code(capability, runs):
    assert FROM_PYPI.runs_on(Card(0, "x", capability, 0)) is runs
    assert GpuBuild("3.0.0", "12.6", "9.5").runs_on(Card(0, "x", capability, 0)) is None


@pytest.fixture
def gpu_build(monkeypatch):
    """(version, CUDA, what it has code for or None where it cannot say, a card) -> Paddle says so of itself."""

    def pretend(version, cuda, numbers, card):
        monkeypatch.setattr(paddle, "__version__", version)
        monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(paddle.version, "cuda", lambda: cuda)
        monkeypatch.setattr(paddle.version, "cudnn", lambda: "8.6.0")
        if numbers is None:
            monkeypatch.delattr(paddle.version, "cuda_archs", raising=False)
        else:
            monkeypatch.setattr(paddle.version, "cuda_archs", lambda: numbers, raising=False)
        monkeypatch.setattr(gpu, "cards", lambda: [card])
        monkeypatch.setattr(gpu, "count", lambda: 1)

    return pretend


@pytest.mark.parametrize(
    "version, cuda, numbers, expected",
    [
        ("2.6.2", "11.8", None, FROM_PYPI.capabilities),
        ("2.6.2", "12.0", None, None),
        ("3.0.0", "12.6", None, None),
        ("3.3.1", "12.9", [75, 90, 120], ((7, 5), (9, 0), (12, 0))),
        ("3.3.1", "12.9", [], None),
    ],
)
def test_what_a_build_has_code_for(gpu_build, version, cuda, numbers, expected):
    gpu_build(version, cuda, numbers, H100)
    assert gpu.build() == GpuBuild(version, cuda, "8.6.0", expected)


@pytest.mark.parametrize("card, index", [(H100, "cu126"), (RTX_5090, "cu129")])
def test_a_card_without_code_is_named_before_anything_runs(gpu_build, monkeypatch, card, index):
    gpu_build("2.6.2", "11.8", None, card)
    parts = (card.name, f"capability {gpu.dotted(card.capability)}", "6.1, 7.0, 7.5, 8.0, 8.6", index, "install guide")

    def refuses(act):
        with pytest.raises(InputError) as error:
            act()
        assert all(part in str(error.value) for part in parts), error.value

    refuses(lambda: usable_device("cuda:0"))
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    refuses(lambda: ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes"))
    refuses(lambda: ppsd3.AutoencoderTiny(encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4))


def test_a_card_with_code_or_of_an_unknown_build_is_taken(gpu_build):
    gpu_build("3.3.1", "12.9", [75, 90, 120], H100)
    assert usable_device("cuda") == "gpu"
    gpu_build("3.0.0", "12.6", None, RTX_5090)
    assert usable_device("gpu:0") == "gpu:0"


def test_a_build_for_the_cpu():
    assert gpu.build().version == paddle.__version__ and not gpu.build().is_too_old
    if not paddle.is_compiled_with_cuda():
        assert gpu.build() == GpuBuild(paddle.__version__) and gpu.cards() == [] and gpu.loaded_cudnn() is None


@pytest.mark.parametrize("version, old", [("2.5.2", True), ("2.6.1", True), ("2.6.2", False), ("3.0.0rc1", False)])
def test_versions(version, old):
    assert GpuBuild(version).is_too_old is old


def test_a_paddle_that_is_too_old_is_named_before_an_import_fails(monkeypatch):
    from ppsd3.utils import paddle_internals

    monkeypatch.setattr(gpu, "build", lambda: GpuBuild("2.5.2"))
    monkeypatch.setitem(sys.modules, "paddle.base", None)
    with pytest.raises(InputError, match=r"needs Paddle 2\.6\.2, and 2\.5\.2 is installed\. Run `pip"):
        runpy.run_path(paddle_internals.__file__, run_name="ppsd3.utils.paddle_internals")


def test_cards_too_old_for_any_build_get_the_guide():
    assert "packages/stable" not in gpu.how_to_install(Card(0, "GTX 980", (5, 2), 0))
    assert Card(0, "NVIDIA GeForce RTX 4090", (8, 9), 0).generation == "Ada"
