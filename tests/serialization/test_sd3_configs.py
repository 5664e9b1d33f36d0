"""Shapes of full-size models give back the configurations that made them."""

import paddle
import pytest

from ppsd3 import AutoencoderKL, CLIPTextModelWithProjection, SD3Transformer2DModel, T5EncoderModel
from ppsd3.serialization.layout import linear_weights
from ppsd3.serialization.readers import TensorInfo
from ppsd3.serialization.sd3_configs import infer_config
from ppsd3.utils.errors import CheckpointFormatError

# The published configurations, but for arguments at their defaults, and a smaller table of positions: that is a buffer,
# which takes memory even in an unallocated model.
MEDIUM = {"num_attention_heads": 24, "caption_projection_dim": 1536, "num_layers": 24}
LARGE = {"num_attention_heads": 38, "caption_projection_dim": 2432, "num_layers": 38}
CLIP = {"bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 77}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
PUBLISHED = {
    "SD3-medium": ("transformer", SD3Transformer2DModel, {**MEDIUM, "pos_embed_max_size": 6}),
    "SD3.5-medium": (
        "transformer",
        SD3Transformer2DModel,
        {**MEDIUM, "pos_embed_max_size": 12, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    ),
    "SD3.5-large": ("transformer", SD3Transformer2DModel, {**LARGE, "pos_embed_max_size": 6, "qk_norm": "rms_norm"}),
    "VAE": ("vae", AutoencoderKL, VAE),
    "CLIP-L": (
        "text_encoder",
        CLIPTextModelWithProjection,
        {
            **CLIP,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "projection_dim": 768,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "hidden_act": "quick_gelu",
            "pad_token_id": 49407,
        },
    ),
    "CLIP-G": (
        "text_encoder_2",
        CLIPTextModelWithProjection,
        {
            **CLIP,
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "projection_dim": 1280,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "hidden_act": "gelu",
            "pad_token_id": 0,
        },
    ),
    "T5-XXL": (
        "text_encoder_3",
        T5EncoderModel,
        {
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
    ),
}


class Shapes:
    """A source without bytes."""

    path = "some file"

    def __init__(self, model, is_paddle=False):
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.metadata = {"format": "pd" if is_paddle else "pt"}
        for name in linear_weights(model) if is_paddle else ():
            self._shapes[name] = self._shapes[name][::-1]

    def keys(self):
        return list(self._shapes)

    def info(self, name):
        return TensorInfo("float16", self._shapes[name], 0, 0)


def unallocated(class_, config):
    with paddle.LazyGuard():
        return class_(**config)


@pytest.mark.parametrize("is_paddle", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name, is_paddle):
    component, class_, config = PUBLISHED[name]
    model = unallocated(class_, config)
    inferred = infer_config(component, Shapes(model, is_paddle))
    assert {**model.config, **inferred} == dict(model.config)
    assert set(config) <= set(inferred)


def test_shapes_that_do_not_say_all():
    odd = unallocated(
        SD3Transformer2DModel, {"num_attention_heads": 3, "attention_head_dim": 40, "caption_projection_dim": 120}
    )
    with pytest.raises(CheckpointFormatError, match=r"width 120.*config="):
        infer_config("transformer", Shapes(odd))
    with pytest.raises(CheckpointFormatError, match=r"4 latent channels.*config="):
        infer_config("vae", Shapes(unallocated(AutoencoderKL, {})))


def test_a_missing_tensor_is_named():
    shapes = Shapes(unallocated(AutoencoderKL, {}))
    del shapes._shapes["decoder.conv_in.weight"]
    with pytest.raises(CheckpointFormatError, match=r"some file has no decoder.conv_in.weight"):
        infer_config("vae", shapes)
