"""Configurations from strangers: every value of every class's file, replaced by each of a list of hostile ones.

What comes out is an object, or an error of ours that names the file, the key and the value; quickly, and without memory
for what the file asks for.
"""

import json
import math
import random
import sys

import numpy as np
import paddle
import pytest
from helpers.process import run

import ppsd3
from ppsd3.modeling_utils import to_be_filled
from ppsd3.utils import checking
from ppsd3.utils.errors import ConfigError, UnknownArgumentError

# Configurations as they are published, or of networks that are small.
CONFIGS = {
    "SD3Transformer2DModel": {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 24,
        "out_channels": 16, "pos_embed_max_size": 96, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm",
    },
    "SD3ControlNetModel": {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 24,
        "out_channels": 16, "pos_embed_max_size": 96, "extra_conditioning_channels": 1, "dual_attention_layers": [],
        "qk_norm": None, "pos_embed_type": "sincos", "use_pos_embed": True, "force_zeros_for_pooled_projection": False,
    },
    "AutoencoderKL": {
        "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [4, 8], "layers_per_block": 1,
        "act_fn": "silu", "latent_channels": 4, "norm_num_groups": 2, "sample_size": [32, 32],
        "scaling_factor": 1.5305, "shift_factor": None, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
        "force_upcast": True, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": True,
    },
    "AutoencoderTiny": {
        "in_channels": 3, "out_channels": 3, "encoder_block_out_channels": [4, 4], "decoder_block_out_channels": [4, 4],
        "act_fn": "relu", "upsample_fn": "nearest", "latent_channels": 16, "upsampling_scaling_factor": 2,
        "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1], "latent_magnitude": 3, "latent_shift": 0.5,
        "force_upcast": False, "scaling_factor": 1.0, "shift_factor": 0.0,
    },
    "CLIPTextModelWithProjection": {
        "vocab_size": 99, "hidden_size": 16, "intermediate_size": 24, "projection_dim": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0, "initializer_range": 0.02, "initializer_factor": 1.0, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2,
    },
    "T5EncoderModel": {
        "vocab_size": 99, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "feed_forward_proj": "gated-gelu", "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "SiglipVisionModel": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_channels": 3, "image_size": 28, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": True,
    },
    "SiglipImageProcessor": {
        "do_resize": True, "size": {"height": 384, "width": 384}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_convert_rgb": True,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
        "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
        "time_shift_type": "exponential", "stochastic_sampling": False,
    },
    "FlowMatchLCMScheduler": {
        "num_train_timesteps": 1000, "shift": 3.0, "shift_terminal": 0.1, "scale_factors": [0.5, 0.75],
        "upscale_mode": "bicubic",
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    "DPMSolverMultistepScheduler": {
        "num_train_timesteps": 1000, "solver_order": 2, "prediction_type": "flow_prediction", "thresholding": False,
        "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True, "flow_shift": 3.0,
        "final_sigmas_type": "zero", "use_flow_sigmas": True, "lambda_min_clipped": -math.inf,
    },
    "UniPCMultistepScheduler": {
        "num_train_timesteps": 1000, "solver_order": 2, "prediction_type": "flow_prediction", "predict_x0": True,
        "solver_type": "bh2", "disable_corrector": [1], "solver_p": None, "flow_shift": 3.0, "shift_terminal": None,
        "use_flow_sigmas": True,
    },
}  # fmt: skip

HOSTILE = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**9, 10**18, 10**80, 0.0, -0.5, 0.5, 1e-320, 1e308, math.nan,
    math.inf, -math.inf, "", "1", "relu", "gated-", "rms_norm", "../../etc/passwd", "\x1b[31m", "x" * 10**4, [], [0],
    [1, 2, 3], [[1]], [None], [10**9] * 4, ["a"], ["DownEncoderBlock2D"] * 300, [1] * 1000, {}, {"height": -1},
    {"height": "1", "width": {}}, {"a": {"b": [1]}},
]  # fmt: skip


def hostile_values(value):
    """Of the list, and what is near ``value``."""
    near = [[value], {"value": value}, str(value)]
    if isinstance(value, (int, float)):
        near += [-value, value + 0.5, value * 10**6, float(value)]
    if isinstance(value, list):
        near += [value * 2, value[:-1], [value], [str(item) for item in value], value * 500]
    return [*HOSTILE, *near]


def made(name, config):
    """The object without memory for weights, as a file of weights would fill it."""
    with to_be_filled():
        return getattr(ppsd3, name).from_config(config)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    paddle.seed(0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_sound_ones_are_accepted(name):
    config = made(name, CONFIGS[name]).config
    assert all(config[key] == (tuple(value) if isinstance(value, list) else value)
               for key, value in CONFIGS[name].items() if key in config)  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_replaced_is_accepted_or_refused_by_name(name):
    """At once: no value makes it slow, or ask for the memory of what it describes."""
    config, refused = CONFIGS[name], {}
    for key, value in config.items():
        for other in hostile_values(value):
            message = refusal(name, {**config, key: other})
            if message is not None:
                refused[key, str(other)[:50]] = message
    # a value that goes with another one is refused under either's name
    wrong = {case: message for case, message in refused.items() if not any(other in message for other in config)}
    assert not wrong
    assert max(map(len, refused.values())) < 1000
    assert len(refused) > 10 * len(config)


def refusal(name, config):
    """The message of the ConfigError that ``config`` ends in, or None."""
    try:
        made(name, config)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_any_keys_missing_nested_or_mixed(name):
    """A seeded walk: several values at once, keys without value, the whole configuration within itself."""
    config, rng = CONFIGS[name], random.Random(name)
    for _ in range(60):
        mutant = dict(config)
        for key in rng.sample(list(config), rng.randint(1, min(4, len(config)))):
            action = rng.randrange(4)
            if action == 0:
                del mutant[key]
            elif action == 1:
                mutant[key] = rng.choice(list(config.values()))
            elif action == 2:
                mutant[key] = {key: mutant[key]}
            else:
                mutant[key] = rng.choice(HOSTILE)
        assert refusal(name, mutant) != ""


@pytest.mark.parametrize("name", CONFIGS)
def test_numpy_numbers_are_numbers(name):
    kinds = {int: np.int64, float: np.float64, bool: np.bool_}
    config = {key: kinds[type(value)](value) if type(value) in kinds else value for key, value in CONFIGS[name].items()}
    known = made(name, CONFIGS[name]).config
    assert made(name, config).config == known
    assert {key: type(value) for key, value in made(name, config).config.items()} == {
        key: type(value) for key, value in known.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_constructors_check_as_files_are_checked(name):
    kind = getattr(ppsd3, name)
    key = next(key for key, value in CONFIGS[name].items() if type(value) is int)
    with pytest.raises(ConfigError, match=f"`{key}` is '7'; it has to be a whole number.* Pass 7 without quotes"):
        kind(**{key: "7"})
    with pytest.raises(UnknownArgumentError, match="no_such_argument"):
        kind(no_such_argument=1)
    with pytest.raises(TypeError):
        kind(no_such_argument=1)


def test_the_error_names_the_file(tmp_path):
    for name in ("SiglipImageProcessor", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        kind, key = getattr(ppsd3, name), list(CONFIGS[name])[1]
        path = tmp_path / kind.config_name
        path.write_text(json.dumps({**CONFIGS[name], key: [[]]}))
        with pytest.raises(ConfigError, match=f"{path}: `{key}` is "):
            kind.from_pretrained(tmp_path)


def test_every_class_with_a_configuration_has_types_that_can_be_checked():
    """No argument of a constructor is left out of the checks by an annotation that does not evaluate."""
    for name in CONFIGS:
        kinds = checking.declared_types(getattr(ppsd3, name).__init__)
        assert kinds and not [argument for argument, kind in kinds.items() if "Any" in str(kind)], name


def test_weights_that_do_not_fit_memory_are_refused_before_they_are_drawn():
    large = {**CONFIGS["SD3Transformer2DModel"], "num_attention_heads": 1024, "attention_head_dim": 64}
    large.update(caption_projection_dim=1024 * 64, dual_attention_layers=[])
    with pytest.raises(ConfigError, match=r"SD3Transformer2DModel has [\d,]+ weights, which need [\d,.]+ GB; .* free"):
        ppsd3.SD3Transformer2DModel.from_config(large)
    with pytest.raises(ConfigError, match="table of positions of 8192 x 8192 patches"):
        ppsd3.SD3Transformer2DModel.from_config({**CONFIGS["SD3Transformer2DModel"], "pos_embed_max_size": 8192})


# A small configuration in an address space of 1.5 GB beside what the imports take, and 5 s.
_CHILD = """
import json, resource, signal, sys
import paddle, ppsd3
from ppsd3.utils.errors import PPSD3Error

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 1_500_000_000,) * 2)
for name, config in json.loads(sys.argv[1]):
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        getattr(ppsd3, name).from_pretrained(config)
        print("made")
    except PPSD3Error as error:
        print(type(error).__name__)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
"""


@pytest.mark.machine
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is taken already is in /proc")
def test_a_small_file_takes_neither_memory_nor_time(tmp_path):
    """With weights beside them that the configurations contradict, in a process with limits."""
    small = ppsd3.SD3Transformer2DModel.from_config(CONFIGS["SD3Transformer2DModel"])
    huge = [
        ("SD3Transformer2DModel", {"num_layers": 128}),
        ("SD3Transformer2DModel", {"num_layers": 10**9}),
        ("SD3Transformer2DModel", {"pos_embed_max_size": 8192}),
        ("SD3Transformer2DModel", {"num_attention_heads": 512, "attention_head_dim": 64,
                                   "caption_projection_dim": 32768}),
        ("SD3ControlNetModel", {"pos_embed_max_size": None, "sample_size": 16384}),
        ("T5EncoderModel", {"num_layers": 128, "d_model": 131072, "d_ff": 131072, "vocab_size": 1 << 22}),
        ("CLIPTextModelWithProjection", {"num_hidden_layers": 128, "vocab_size": 1 << 22, "hidden_size": 131072}),
        ("AutoencoderKL", {"block_out_channels": [131072] * 8, "layers_per_block": 16, "norm_num_groups": 1,
                           "down_block_types": ["DownEncoderBlock2D"] * 8, "up_block_types": ["UpDecoderBlock2D"] * 8}),
        ("AutoencoderTiny", {"num_encoder_blocks": [16] * 2, "num_decoder_blocks": [16] * 2}),
        ("SiglipVisionModel", {"num_hidden_layers": 128, "hidden_size": 131072, "num_attention_heads": 1}),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 10**9}),
        ("UniPCMultistepScheduler", {"disable_corrector": [1] * 10**5}),
    ]  # fmt: skip
    cases = []
    for index, (name, entries) in enumerate(huge):
        folder, kind = tmp_path / str(index), getattr(ppsd3, name)
        small.save_pretrained(folder)
        if hasattr(kind, "weights_name") and kind.weights_name != small.weights_name:
            (folder / f"{small.weights_name}.safetensors").rename(folder / f"{kind.weights_name}.safetensors")
        (folder / kind.config_name).write_text(json.dumps({**CONFIGS[name], **entries}))
        cases.append((name, str(folder)))
    found = run(_CHILD, json.dumps(cases)).split()
    assert len(found) == len(cases) and set(found) <= {"WeightMismatchError", "ConfigError", "made"}
    assert found[-1] == "made" and found.count("made") == 1
