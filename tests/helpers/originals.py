"""Single files with the names of Stability AI and ComfyUI, made from tiny models."""

import json
import struct

import numpy as np
import paddle

from ppsd3.loaders.conversion import convert
from ppsd3.serialization import SafetensorsFile
from ppsd3.serialization.readers import DTYPES
from ppsd3.serialization.tensors import _FP8_TABLES

from . import tiny

T5_PREFIX = "text_encoders.t5xxl.transformer."


class Array:
    """A numpy array as what ``write_tensors`` takes; ``dtype`` may name an 8-bit float or bfloat16."""

    def __init__(self, array, dtype=None):
        self.array, self.dtype, self.shape = np.asarray(array), dtype or np.asarray(array).dtype.name, array.shape

    def numpy(self):
        return self.array


def write(path, tensors, metadata=None):
    """Writes a safetensors file of :class:`Array` objects or numpy arrays, 8-bit floats included."""
    codes = {name: code for code, name in DTYPES.items()}
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, value in tensors.items():
        value = value if isinstance(value, Array) else Array(np.asarray(value))
        raw = np.ascontiguousarray(value.array).tobytes()
        header[name] = {
            "dtype": codes[value.dtype],
            "shape": list(value.array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def read(path):
    """dict: name -> :class:`Array` of everything in a safetensors file."""
    file = SafetensorsFile(path)
    return {name: Array(np.array(file.array(name)), file.info(name).dtype) for name in file.keys()}


def single_file(checkpoint, path, **options):
    """The pipeline in the directory ``checkpoint`` as a file without any configuration, as published ones are."""
    convert(checkpoint, path, **options)
    return write(path, read(path))


def to_float8(values):
    """float32 array -> bytes (uint8) of the nearest float8_e4m3fn."""
    table = _FP8_TABLES["float8_e4m3fn"]
    order = np.argsort(np.where(np.isnan(table), np.inf, table), kind="stable")[:254]
    steps = table[order]
    above = np.clip(np.searchsorted(steps, values), 1, len(steps) - 1)
    nearest = np.where(np.abs(steps[above] - values) < np.abs(values - steps[above - 1]), above, above - 1)
    return order[nearest].astype(np.uint8)


def scale_to_float8(tensors, prefix):
    """``tensors`` with the matrices under ``prefix`` in scaled 8-bit floats, as ComfyUI writes them, and their values.

    Returns:
        (dict for :func:`write`, dict: name -> float32 array of the values that a reader should see).
    """
    written, meant = {prefix + "scaled_fp8": Array(np.zeros(2, np.uint8), "float8_e4m3fn")}, {}
    for name, value in tensors.items():
        written[name] = value
        if name.startswith(prefix) and name.endswith(".weight") and value.array.ndim == 2 and "shared" not in name:
            scale = np.float32(np.abs(value.array).max() / 448)
            codes = to_float8(value.array.astype(np.float32) / scale)
            written[name] = Array(codes, "float8_e4m3fn")
            written[name[: -len("weight")] + "scale_weight"] = Array(np.array(scale))
            meant[name] = _FP8_TABLES["float8_e4m3fn"][codes] * scale
    return written, meant


def small_published_models():
    """Networks with the head width, groups and latent channels of published ones, and otherwise small.

    Their shapes say all, so that no configuration is needed.
    """
    from ppsd3 import AutoencoderKL, CLIPTextModelWithProjection, SD3Transformer2DModel, T5EncoderModel

    clip = {"num_hidden_layers": 2, "max_position_embeddings": 77, "vocab_size": 600}
    ids = {"bos_token_id": 598, "eos_token_id": 599}
    wide = {"hidden_size": 128, "intermediate_size": 96, "projection_dim": 128, "num_attention_heads": 2}
    narrow = {"hidden_size": 64, "intermediate_size": 96, "projection_dim": 64, "num_attention_heads": 1}
    models = {
        "transformer": SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=1,
            joint_attention_dim=200,
            caption_projection_dim=64,
            pooled_projection_dim=192,
            out_channels=16,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 64),
            latent_channels=16,
            norm_num_groups=32,
            sample_size=1024,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": CLIPTextModelWithProjection(**clip, **ids, **narrow, hidden_act="quick_gelu", pad_token_id=599),
        "text_encoder_2": CLIPTextModelWithProjection(**clip, **ids, **wide, hidden_act="gelu", pad_token_id=0),
        "text_encoder_3": T5EncoderModel(**{**tiny.T5, "relative_attention_num_buckets": 32, "d_model": 200}),
    }
    for seed, (name, model) in enumerate(models.items()):
        tiny.randomize(model, seed, tiny.GAINS.get(name, 1.0))
        model.eval()
    models["text_encoder"].text_projection.weight.set_value(paddle.eye(64))
    return models
