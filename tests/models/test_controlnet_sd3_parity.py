"""ControlNets against diffusers: weights that diffusers saved, read by the public loader."""

import numpy as np
import paddle
import pytest
from helpers import golden, tiny

from ppsd3.models import SD3ControlNetModel, SD3MultiControlNetModel, SD3Transformer2DModel

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
reference = pytest.importorskip("helpers.reference")
pytestmark = pytest.mark.parity

BAR = 1e-5  # max |difference| / max |reference|, fp32
SD3 = {**tiny.TRANSFORMER, "in_channels": 16, "num_layers": 2}
WITHOUT_TEXT = {**SD3, "joint_attention_dim": None, "use_pos_embed": False, "num_layers": 3}
CONFIGS = {
    "sd3": SD3,
    "extra channel": {**SD3, "extra_conditioning_channels": 1},
    "sd35_medium": {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "sd35_large": {**SD3, "qk_norm": "rms_norm", "num_layers": 4},
    "without text": WITHOUT_TEXT,
    "no positions": {**SD3, "pos_embed_type": None},
}
GRID = (8, 12)


def pair_of(config, directory):
    theirs = reference.fill(diffusers.SD3ControlNetModel(**config))
    theirs.save_pretrained(directory)
    return theirs, SD3ControlNetModel.from_pretrained(directory)


def inputs_for(config, rows=2, tokens=False):
    channels = config["in_channels"] + config.get("extra_conditioning_channels", 0)
    arrays = {
        "hidden_states": golden.normal(rows, config["in_channels"], *GRID, seed=1),
        "controlnet_cond": golden.normal(rows, channels, *GRID, seed=2),
        "encoder_hidden_states": golden.normal(rows, 11, tiny.TRANSFORMER["joint_attention_dim"], seed=3),
        "pooled_projections": golden.normal(rows, config["pooled_projection_dim"], seed=4),
        "timestep": golden.normal(rows, seed=5) * 100 + 500,
    }
    if not config.get("use_pos_embed", True):
        arrays["hidden_states"] = golden.normal(rows, GRID[0] * GRID[1] // 4, 32, seed=6)
    if config["joint_attention_dim"] is None:
        del arrays["encoder_hidden_states"]
    return arrays


def run(model, tensor, arrays, **call):
    with torch.no_grad(), paddle.no_grad():
        return model(**{name: tensor(array) for name, array in arrays.items()}, **call)


def assert_close(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        assert golden.difference(mine.numpy(), other.numpy()) <= BAR


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_residuals(name, scale, tmp_path):
    theirs, ours = pair_of(CONFIGS[name], tmp_path)
    arrays = inputs_for(CONFIGS[name])
    mine = run(ours, paddle.to_tensor, arrays, conditioning_scale=scale).controlnet_block_samples
    other = run(theirs, torch.from_numpy, arrays, conditioning_scale=scale).controlnet_block_samples
    assert_close(mine, other)


def test_several_are_added(tmp_path):
    pairs = [pair_of({**SD3, "qk_norm": norm}, tmp_path / str(norm)) for norm in (None, "rms_norm")]
    arrays = inputs_for(SD3)
    conds = [arrays.pop("controlnet_cond"), golden.normal(2, 16, *GRID, seed=9)]
    ours, theirs = (
        SD3MultiControlNetModel([p[1] for p in pairs]),
        diffusers.SD3MultiControlNetModel([p[0] for p in pairs]),
    )
    results = [
        run(
            model,
            tensor,
            arrays,
            controlnet_cond=[tensor(c) for c in conds],
            conditioning_scale=[0.5, 2.0],
            return_dict=False,
        )
        for model, tensor in ((ours, paddle.to_tensor), (theirs, torch.from_numpy))
    ]
    assert_close(results[0][0], results[1][0])


def test_from_transformer(tmp_path):
    config = {**tiny.TRANSFORMER, "qk_norm": "rms_norm"}
    theirs = reference.fill(diffusers.SD3Transformer2DModel(**config))
    theirs.save_pretrained(tmp_path)
    ours = SD3Transformer2DModel.from_pretrained(tmp_path)
    made = SD3ControlNetModel.from_transformer(ours, num_layers=2)
    other = diffusers.SD3ControlNetModel.from_transformer(theirs, num_layers=2, num_extra_conditioning_channels=0)
    state = other.state_dict()
    for name, tensor in made.state_dict().items():
        assert np.array_equal(tensor.numpy(), state[name].numpy()), name


@pytest.mark.parametrize("name", ["sd3", "without text"])
def test_what_we_save_diffusers_loads(name, tmp_path):
    made = tiny.fill(SD3ControlNetModel(**CONFIGS[name]))
    made.save_pretrained(tmp_path)
    theirs = diffusers.SD3ControlNetModel.from_pretrained(tmp_path)
    arrays = inputs_for(CONFIGS[name])
    mine = run(made, paddle.to_tensor, arrays).controlnet_block_samples
    assert_close(mine, run(theirs, torch.from_numpy, arrays).controlnet_block_samples)
