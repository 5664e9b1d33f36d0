"""Writes the golden outputs of tiny networks that the default tests compare with: needs torch, diffusers, transformers.

python tests/golden/make_models.py
"""

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers import golden, reference, tiny


def transformer():
    for name, (changes, grid, call) in golden.TRANSFORMER.items():
        config = {**tiny.TRANSFORMER, **changes}
        model = reference.fill(diffusers.SD3Transformer2DModel(**config))
        inputs = {key: torch.from_numpy(array) for key, array in golden.transformer_inputs(config, grid).items()}
        yield name, model(**inputs, **call).sample


def vae():
    model = reference.fill(diffusers.AutoencoderKL(**tiny.VAE))
    picture, latents = (torch.from_numpy(array) for array in golden.vae_inputs())
    yield "moments", model.encode(picture).latent_dist.parameters
    yield "picture", model.decode(latents).sample


def clip():
    for name, config in golden.CLIP.items():
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
        result = reference.fill(model)(torch.from_numpy(golden.clip_ids()), output_hidden_states=True)
        yield f"{name}_text_embeds", result.text_embeds
        yield f"{name}_penultimate", result.hidden_states[-2]


def t5():
    for name, config in golden.T5.items():
        model = reference.fill(transformers.T5EncoderModel(transformers.T5Config(**config)))
        yield name, model(torch.from_numpy(golden.t5_ids())).last_hidden_state


if __name__ == "__main__":
    with torch.no_grad():
        for make in (transformer, vae, clip, t5):
            arrays = {name: tensor.numpy() for name, tensor in make()}
            np.savez_compressed(golden.DATA / f"golden_{make.__name__}.npz", **arrays)
