"""Training data of the bundled model's transformer: encoded scenes, with a new caption each time they are used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Callable

import numpy as np

from ..models import AutoencoderKL
from ..pipelines.stable_diffusion_3.prompt_encoding import TextEncoders
from ..training.autoencoder import to_model_range
from ..training.text_to_image import Batch
from ..transformers import CLIPTokenizer, T5Tokenizer
from ..utils.files import atomic_write
from ..utils.paddle_internals import no_grad
from .scene import Scene
from .world import caption, render_batch, sample_scene


def scene_of(seed: int, index: int) -> Scene:
    """Scene number ``index``. The dataset stores only latents; scenes are sampled again for their captions."""
    return sample_scene(np.random.default_rng([seed, index]))


@no_grad
def encode_scenes(
    vae: AutoencoderKL,
    directory: str,
    count: int,
    seed: int = 1,
    shard: int = 4096,
    batch: int = 64,
    draw: Callable[[Sequence[Scene]], np.ndarray] = render_batch,
) -> None:
    """Writes the scaled latent means of scenes 0 to ``count`` - 1 as ``latents_<k>.npy``; finished shards are kept.

    ``draw`` renders scenes as pixels [B, H, W, 3].
    """
    os.makedirs(directory, exist_ok=True)
    for k, start in enumerate(range(0, count, shard)):
        path = os.path.join(directory, f"latents_{k:03d}.npy")
        if os.path.exists(path):
            continue
        latents = []
        for first in range(start, min(start + shard, count), batch):
            pictures = draw([scene_of(seed, i) for i in range(first, min(first + batch, start + shard, count))])
            latents.append(vae.scale_latents(vae.encode(to_model_range(pictures), return_dict=False)[0].mode()).numpy())
        with atomic_write(path) as file:
            np.save(file, np.concatenate(latents).astype(np.float16))
        print(f"[latents] {start + shard} of {count}", flush=True)


class LatentScenes:
    """Batches for :class:`~ppsd3.training.text_to_image.TextToImageTask`.

    Most batches are only as long as their captions: captions are drawn for ``POOL`` batches at once and sorted by
    length. The others are padded as pipelines pad, so that the model learns to ignore any number of pads; they have
    fewer pictures, for about the same number of tokens.

    Args:
        directory: written by :func:`encode_scenes`.
        encoders: for the tokenizers.
        batch: pictures in a batch of short captions.
        seed: of :func:`encode_scenes`.
        padded: T5 length -> probability that a batch is padded to it.
        image_tokens: per picture.
        controls: another directory of the same scenes, drawn differently, for ``Batch.controls``.
    """

    POOL: int = 4

    def __init__(
        self,
        directory: str,
        encoders: TextEncoders,
        batch: int,
        seed: int = 1,
        padded: dict[int, float] | None = None,
        image_tokens: int = 16,
        controls: str | None = None,
    ) -> None:
        self.latents: np.ndarray = _load(directory)
        self.controls: np.ndarray | None = None if controls is None else _load(controls)
        assert encoders.tokenizer is not None and encoders.tokenizer_3 is not None
        self.tokenizers: tuple[CLIPTokenizer, T5Tokenizer] = (encoders.tokenizer, encoders.tokenizer_3)
        self.clip_max_length: int = encoders.clip_max_length
        self.batch: int = batch
        self.seed: int = seed
        self.image_tokens: int = image_tokens
        self.padded: dict[int, float] = padded or {32: 0.1, 77: 0.03, 256: 0.03}
        self._pool_number = None
        self._pool: list[Batch] = []

    def __call__(self, rng: np.random.Generator, step: int) -> Batch:
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

    def _draw_pool(self, rng: np.random.Generator) -> list[Batch]:
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
        latents = self.latents[indices].astype(np.float32)
        controls = None if self.controls is None else self.controls[indices].astype(np.float32)
        return Batch(latents, prompts, clip_length, t5_length, controls)


def _load(directory: str) -> np.ndarray:
    files = sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".npy"))
    return np.concatenate([np.load(file) for file in files])
