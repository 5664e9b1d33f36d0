"""Files cross over both ways: what diffusers and transformers save loads here bit for bit, and the reverse."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import ppsd3
from ppsd3.serialization.tensors import cast, put

pytestmark = pytest.mark.parity

TRANSFORMER = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=24,
    caption_projection_dim=16,
    pooled_projection_dim=20,
    out_channels=4,
    pos_embed_max_size=8,
    dual_attention_layers=(0,),
    qk_norm="rms_norm",
)
VAE = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    norm_num_groups=4,
    use_quant_conv=False,
    use_post_quant_conv=False,
)


def make_transformer():
    return diffusers.SD3Transformer2DModel(**TRANSFORMER)


def make_vae():
    return diffusers.AutoencoderKL(**VAE)


def make_clip():
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return transformers.CLIPTextModelWithProjection(config)


def make_t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config)


CASES = {
    "transformer": (make_transformer, "SD3Transformer2DModel", diffusers),
    "vae": (make_vae, "AutoencoderKL", diffusers),
    "clip": (make_clip, "CLIPTextModelWithProjection", transformers),
    "t5": (make_t5, "T5EncoderModel", transformers),
}


def bits(tensor):
    """A torch or Paddle tensor's bits as unsigned integers."""
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().contiguous()
        array = tensor.view(torch.int16).numpy() if tensor.element_size() == 2 else tensor.numpy()
    else:
        array = tensor.numpy()
    return array.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def assert_same(theirs, ours):
    theirs = theirs.state_dict()
    ours = ours.state_dict()
    for name in set(theirs) & set(ours):
        np.testing.assert_array_equal(bits(theirs[name]), bits(ours[name]), err_msg=name)
    aliases = {"encoder.embed_tokens.weight"}
    assert set(theirs) - aliases == set(ours) - aliases


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "6KB", "variant": "fp16"}])
def test_theirs_here_and_back(tmp_path, case, dtype, options):
    make, name, library = CASES[case]
    torch.manual_seed(0)
    theirs = make().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}

    ours = getattr(ppsd3, name).from_pretrained(tmp_path / "theirs", paddle_dtype=dtype, **variant)
    if dtype == "float16":
        for parameter in ours.parameters():  # T5's wo stays float32, as in transformers
            put(parameter, cast(parameter, dtype))
    assert_same(theirs, ours)

    ours = getattr(ppsd3, name).from_pretrained(tmp_path / "theirs", **variant)  # float32
    assert_same(theirs.float(), ours)
    ours.save_pretrained(tmp_path / "ours", **options)
    again = getattr(library, name).from_pretrained(tmp_path / "ours", **variant)
    assert_same(again, ours)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_floats(tmp_path, dtype):
    from safetensors.torch import save_file

    theirs = make_transformer()
    theirs.save_config(tmp_path)
    small = {name: tensor.to(getattr(torch, dtype)) for name, tensor in theirs.state_dict().items()}
    save_file(small, tmp_path / "diffusion_pytorch_model.safetensors")
    ours = ppsd3.SD3Transformer2DModel.from_pretrained(tmp_path)
    for name, tensor in ours.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), small[name].float().numpy(), err_msg=name)
