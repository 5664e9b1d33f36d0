"""The tables of other models against the names that diffusers' own networks and classes have."""

import inspect

import pytest

from ppsd3.utils.recognition import explain_class, explain_tensors
from ppsd3.utils.samplers import explain_sampler

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

NETWORKS = {
    "FluxTransformer2DModel": "network of FLUX.1", "FluxControlNetModel": "is a ControlNet for FLUX.1",
    "Flux2Transformer2DModel": "network of FLUX.2", "ChromaTransformer2DModel": "network of Chroma",
    "AuraFlowTransformer2DModel": "network of AuraFlow", "PixArtTransformer2DModel": "network of PixArt",
    "SanaTransformer2DModel": "network of Sana", "QwenImageTransformer2DModel": "network of Qwen-Image",
    "ZImageTransformer2DModel": "network of Z-Image", "Lumina2Transformer2DModel": "network of Lumina",
    "WanTransformer3DModel": "network of Wan", "CogVideoXTransformer3DModel": "network of CogVideoX",
    "LTXVideoTransformer3DModel": "network of LTX-Video", "MochiTransformer3DModel": "network of Mochi",
    "HunyuanVideoTransformer3DModel": "network of HunyuanVideo", "CogView4Transformer2DModel": "network of CogView",
    "StableCascadeUNet": "network of Stable Cascade", "MotionAdapter": "network of AnimateDiff",
    "T2IAdapter": "is a T2I-adapter", "AutoencoderKLWan": "VAE of a model for videos",
    "AutoencoderKLFlux2": "VAE of FLUX.2, with 32 channels", "AutoencoderKL": "Stable Diffusion 1, 2 or XL, with 4",
}  # fmt: skip
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


def described(network):
    tensors = {name: ("F16", tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    return explain_tensors("X", tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    if not hasattr(diffusers, name):
        pytest.skip("this version of diffusers does not have it")
    with torch.device("meta"):
        assert NETWORKS[name] in described(getattr(diffusers, name)())


@pytest.mark.parametrize("width", WIDTHS)
def test_unets_by_the_width_of_their_texts(width):
    with torch.device("meta"):
        assert f"network of {WIDTHS[width]}," in described(diffusers.UNet2DConditionModel(cross_attention_dim=width))
        control = diffusers.ControlNetModel(cross_attention_dim=width)
        assert f"is a ControlNet for {WIDTHS[width]}," in described(control)


def test_stable_diffusion_3_is_no_stranger():
    with torch.device("meta"):
        for name in ("SD3Transformer2DModel", "SD3ControlNetModel"):
            tensors = {n: ("F16", tuple(t.shape)) for n, t in getattr(diffusers, name)().state_dict().items()}
            assert explain_tensors("X", tensors, wanted="network") is None


def test_classes():
    """Pipelines of one family carry one name, and none of Stable Diffusion 3 is a stranger."""
    names = [name for name in dir(diffusers) if name.endswith("Pipeline") and not name.startswith(("Flax", "Onnx"))]
    families = ("Flux", "StableDiffusionXL", "PixArt", "HunyuanDiT", "AuraFlow", "Lumina", "Sana", "QwenImage", "Wan")
    for name in names:
        said = explain_class("X", name)
        assert name.startswith("StableDiffusion3") <= (said is None)
        assert not name.startswith(families) or f"diffusers' {name}." in said


def test_samplers():
    """Each sampler of diffusion models is refused by name, but for those that are here."""
    ours = ("FlowM", "FlowMatch", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    known = 0
    for name in dir(diffusers):
        class_ = getattr(diffusers, name) if name.endswith("Scheduler") and not name.startswith("Flax") else None
        if inspect.isclass(class_) and not name.startswith(ours):
            known += explain_sampler("X", name) is not None
    assert known >= 25
