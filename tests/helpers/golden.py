"""The cases of the golden files: what is computed by diffusers and transformers when they are made
(``tests/golden/make_models.py``), and by ppsd3 when they are checked, without torch.

Weights follow from their names (``tiny.named_weight``) and inputs from a seed, so a file holds outputs alone.
"""

from pathlib import Path

import numpy as np

from . import tiny

DATA = Path(__file__).parent.parent / "data"
BAR = 1e-5  # max |difference| / max |golden|

TEXT_TOKENS = 9
_MEDIUM = {**tiny.SD35, "pos_embed_max_size": 32}

# name -> (changes to the configuration, latent grid, changes to the call)
TRANSFORMER = {
    "sd3": ({}, (16, 16), {}),
    "sd3_wide": ({}, (10, 24), {}),
    "sd35_medium": (_MEDIUM, (16, 16), {}),
    "sd35_medium_skip_layers": (_MEDIUM, (12, 8), {"skip_layers": [1]}),
    "sd35_large": ({"qk_norm": "rms_norm", "num_layers": 5}, (8, 14), {}),
}
CLIP = {"clip_l": {**tiny.CLIP_L, **tiny.CLIP_IDS}, "clip_g": {**tiny.CLIP_G, **tiny.CLIP_IDS}}
T5 = {"t5": tiny.T5}


def load(name):
    """dict: case -> golden array, of ``golden_<name>.npz``."""
    return dict(np.load(DATA / f"golden_{name}.npz"))


def difference(result, golden):
    """max |difference| / max |golden|."""
    result = np.asarray(result)
    assert result.shape == golden.shape
    return np.abs(result - golden).max() / np.abs(golden).max()


def normal(*shape, seed=0):
    """float32 standard normal, the same with every version of numpy."""
    return np.random.RandomState(seed).standard_normal(shape).astype("float32")


def transformer_inputs(config, grid, batch=2):
    """dict of the forward call's arrays; timesteps from the noisy and the clean end."""
    return {
        "hidden_states": normal(batch, config["in_channels"], *grid, seed=1),
        "encoder_hidden_states": normal(batch, TEXT_TOKENS, config["joint_attention_dim"], seed=2),
        "pooled_projections": normal(batch, config["pooled_projection_dim"], seed=3),
        "timestep": np.linspace(987.25, 30.5, batch, dtype=np.float32),
    }


def vae_inputs():
    """(picture [1, 3, 24, 32], latents [1, 4, 6, 8])."""
    return np.tanh(normal(1, 3, 24, 32, seed=4)), normal(1, 4, 6, 8, seed=5)


def clip_ids():
    """A row that fills its 77 tokens, and a short one padded with the end token."""
    ids = np.random.RandomState(6).randint(0, 500, (2, 77))
    ids[:, 0], ids[0, -1], ids[1, 11:] = tiny.CLIP_IDS["bos_token_id"], *[tiny.CLIP_IDS["eos_token_id"]] * 2
    return ids


def t5_ids():
    """Token ids [2, 40], the second row padded with 0."""
    ids = np.random.RandomState(7).randint(3, 160, (2, 40))
    ids[0, -1], ids[1, 13], ids[1, 14:] = 1, 1, 0
    return ids
