"""What GPUs have kernels for, of the operators that a call uses; on any Paddle, without the test device.

Of each task, ``helpers.concerns`` asks the same.
"""

import paddle
import pytest
from helpers import tiny
from helpers.gpu_kernels import assert_gpu_computes
from helpers.variety import CACHES, GUIDANCES, SAMPLERS

import ppsd3
from ppsd3.pipelines.stable_diffusion_3 import guidance
from ppsd3.pipelines.stable_diffusion_3.step_caching import StepCache
from ppsd3.schedulers.flow_scheduler import FlowScheduler


@pytest.fixture(scope="module")
def components():
    return tiny.make_components()


def assert_call_computes(components, cache=None, **arguments):
    """The transformer alone is guided, sampled and cached; embeddings are given, and latents come back."""
    pipe = ppsd3.StableDiffusion3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    if cache is not None:
        pipe.enable_cache(cache)
    text = {"prompt_embeds": [1, 8, 40], "pooled_prompt_embeds": [1, 28]}
    given = {prefix + name: paddle.ones(shape) for prefix in ("", "negative_") for name, shape in text.items()}
    fixed = {"num_inference_steps": 5, "height": 32, "width": 32, "output_type": "latent"}
    assert_gpu_computes(lambda: pipe(generator=ppsd3.TorchGenerator(1), **given, **fixed, **arguments))


@pytest.mark.parametrize("name", GUIDANCES)
def test_guidances(components, name):
    assert_call_computes(components, guidance=GUIDANCES[name]())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(components, name):
    sampler = SAMPLERS[name](components["scheduler"].config)
    assert_call_computes({**components, "scheduler": sampler})


@pytest.mark.parametrize("cache", CACHES)
def test_step_caches(components, cache):
    assert_call_computes(components, cache(warmup=2))


def kinds_of(base):
    """Its subclasses that are in the package and whole."""
    found = [base]
    for kind in found:
        found.extend(kind.__subclasses__())
    return {
        kind for kind in found if kind.__module__.startswith("ppsd3.") and not getattr(kind, "__abstractmethods__", ())
    }


def test_no_kind_is_left_out():
    assert set(CACHES) == {kind for kind in kinds_of(StepCache) if "answer" in vars(kind)} - {StepCache}
    assert {type(make()) for make in GUIDANCES.values()} == kinds_of(guidance.Guidance) - {guidance.WrappedGuidance}
    config = tiny.SCHEDULER
    assert {type(make(config)) for make in SAMPLERS.values()} <= kinds_of(FlowScheduler)


def test_an_operator_without_a_kernel_is_named_with_its_place(monkeypatch):
    """``svd`` stands for one: GPUs have it in float32 alone."""
    monkeypatch.setattr(guidance.NoGuidance, "combine", lambda self, predictions, moment: _decomposed(predictions[0]))
    with pytest.raises(AssertionError, match=r"svd in float16, bfloat16, called at .*denoising\.py:"):
        assert_call_computes({**tiny.make_components()}, guidance=guidance.NoGuidance())


def _decomposed(x):
    paddle.linalg.svd(x[0, 0])
    return x
