"""Training data of the bundled model's transformer: encoded scenes, captioned anew each time they are shown."""

import os

import numpy as np
import paddle

from ..training.autoencoder import to_model_range
from ..training.text_to_image import Batch
from ..utils.files import atomic_write
from .world import caption, render_batch, sample_scene


def scene_of(seed, index):
    """The scene with this number: the dataset stores latents alone, scenes are drawn again."""
    return sample_scene(np.random.default_rng([seed, index]))


@paddle.no_grad()
def encode_scenes(vae, directory, count, seed=1, shard=4096, batch=64, draw=render_batch):
    """Writes the scaled latent means of scenes 0 to ``count`` - 1 as ``latents_<k>.npy``; finished shards are kept.

    ``draw`` makes pixels [B, H, W, 3] of a list of scenes.
    """
    os.makedirs(directory, exist_ok=True)
    for k, start in enumerate(range(0, count, shard)):
        path = os.path.join(directory, f"latents_{k:03d}.npy")
        if os.path.exists(path):
            continue
        latents = []
        for first in range(start, min(start + shard, count), batch):
            pictures = draw([scene_of(seed, i) for i in range(first, min(first + batch, start + shard, count))])
            latents.append(vae.scale_latents(vae.encode(to_model_range(pictures)).latent_dist.mode()).numpy())
        with atomic_write(path) as file:
            np.save(file, np.concatenate(latents).astype(np.float16))
        print(f"[latents] {start + shard} of {count}", flush=True)


class LatentScenes:
    """Batches for :class:`~ppsd3.training.text_to_image.TextToImageTask`.

    Most batches are cut to the length of their captions: captions are drawn for ``POOL`` batches at once and sorted by
    length. The rest are padded as pipelines pad, so that the model learns to look past any number of pads; they
    hold fewer pictures, for about the same number of tokens.

    Args:
        directory (str): written by :func:`encode_scenes`.
        encoders (TextEncoders): for the tokenizers.
        batch (int): pictures in a batch of short captions.
        seed (int): that the scenes were encoded with.
        padded (dict of int to float): chance of a batch padded to this T5 length.
        image_tokens (int): per picture.
        controls (str, optional): another directory of the same scenes, drawn otherwise: batches then have ``controls``.
    """

    POOL = 4

    def __init__(self, directory, encoders, batch, seed=1, padded=None, image_tokens=16, controls=None):
        self.latents = _load(directory)
        self.controls = None if controls is None else _load(controls)
        self.tokenizers = (encoders.tokenizer, encoders.tokenizer_3)
        self.clip_max_length = encoders.clip_max_length
        self.batch, self.seed, self.image_tokens = batch, seed, image_tokens
        self.padded = padded or {32: 0.1, 77: 0.03, 256: 0.03}
        self._pool_number, self._pool = None, None

    def __call__(self, rng, step):
        lengths, odds = list(self.padded), list(self.padded.values())
        t5_length = rng.choice([0, *lengths], p=[1 - sum(odds), *odds])
        if not t5_length:
            return self._short(step)
        tokens = self.image_tokens + self.clip_max_length + int(t5_length)
        size = max(8, self.batch * 64 // max(64, tokens))
        indices = rng.integers(len(self.latents), size=size)
        prompts = [caption(scene_of(self.seed, int(i)), rng) for i in indices]
        return self._batch(indices, prompts, self.clip_max_length, int(t5_length))

    def _short(self, step):
        number, place = divmod(step, self.POOL)
        if number != self._pool_number:
            self._pool_number, self._pool = number, self._draw_pool(np.random.default_rng([self.seed, 7, number]))
        return self._pool[place]

    def _draw_pool(self, rng):
        indices = rng.integers(len(self.latents), size=self.POOL * self.batch)
        prompts = [caption(scene_of(self.seed, int(i)), rng) for i in indices]
        counts = [np.array([len(ids) for ids in t(prompts, padding=False).input_ids]) for t in self.tokenizers]
        groups = np.array_split(np.argsort(counts[0], kind="stable"), self.POOL)
        rng.shuffle(groups)
        return [
            self._batch(indices[rows], [prompts[i] for i in rows], *(int(count[rows].max()) for count in counts))
            for rows in groups
        ]

    def _batch(self, indices, prompts, clip_length, t5_length):
        latents, controls = (
            None if stored is None else stored[indices].astype(np.float32) for stored in (self.latents, self.controls)
        )
        return Batch(latents, prompts, clip_length, t5_length, controls)


def _load(directory):
    files = sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".npy"))
    return np.concatenate([np.load(file) for file in files])
