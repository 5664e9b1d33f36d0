"""Batches of samples by their number: what a run sees does not depend on where it was interrupted, or on its ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...utils.errors import InputError
from ..caches import LatentCache
from ..text_to_image import Batch
from .buckets import Buckets, Crop, Size
from .samples import Sample


class BatchPlan:
    """Which samples are in batch number n.

    Each epoch has every sample once, in an order of its own; the last batch of a bucket is filled up from its start.

    Args:
        buckets: the bucket of each sample.
        batch_size: samples of one bucket in a batch.
        seed: of the orders.
    """

    def __init__(self, buckets: Sequence[Size], batch_size: int, seed: int = 0) -> None:
        self.batch_size: int = batch_size
        self.seed: int = seed
        self._members: dict[Size, np.ndarray] = {
            size: np.flatnonzero([bucket == size for bucket in buckets]) for size in sorted(set(buckets))
        }
        self.batches_per_epoch: int = sum(-(-len(m) // batch_size) for m in self._members.values())
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    def __call__(self, number: int) -> np.ndarray:
        """Indices of the samples of batch ``number``."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled(epoch)
        return self._epoch[1][place]

    def _shuffled(self, epoch):
        rng = np.random.default_rng([self.seed, 11, epoch])
        batches = []
        for members in self._members.values():
            order = rng.permutation(members)
            whole = np.resize(order, -(-len(order) // self.batch_size) * self.batch_size)
            batches += np.split(whole, len(whole) // self.batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a picture varies from one time to the next. Each variant is encoded once, so they are few.

    Args:
        random_flip: mirrored every other time. Not for what has a left and a right: text, faces of one person.
        random_crop: cut at one of nine places in the place of the centre.
    """

    random_flip: bool = False
    random_crop: bool = False

    def crop(self, size: Size, rng: np.random.Generator) -> Crop:
        """One variant, for a bucket."""
        flip, row, column = rng.random() < 0.5, *rng.integers(3, size=2)  # drawn always: one option moves no other
        place = (column / 2, row / 2) if self.random_crop else (0.5, 0.5)
        return Crop(size, place, bool(flip and self.random_flip))


class SampleBatches:
    """Batches for :class:`~ppsd3.training.text_to_image.TextToImageTask`: pictures as latents, with their captions.

    Args:
        samples: that can be opened.
        latents: encodes pictures, and remembers them by the samples' keys.
        buckets: the sizes.
        batch_size: samples in a batch. With priors each batch has as many of these in addition.
        priors: samples of the class (DreamBooth's prior preservation), cut to the same buckets.
        prior_weight: of the priors' loss beside the others'.
        augmentation: of pictures and their control pictures alike.
        clip_length, t5_length: tokens to pad to.
        seed: of the order.
        image_features: ``image_features(sample, rng)`` -> [T, E], for an IP-adapter.
        shifted_controls: False leaves the VAE's shift out of control pictures, for a ControlNet with
            ``force_zeros_for_pooled_projection``.

    Raises:
        InputError: there is no sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        latents: LatentCache,
        buckets: Buckets,
        batch_size: int = 1,
        priors: Sequence[Sample] = (),
        prior_weight: float = 1.0,
        augmentation: Augmentation = Augmentation(),
        clip_length: int = 77,
        t5_length: int = 256,
        seed: int = 0,
        image_features: Callable[[Sample, np.random.Generator], np.ndarray] | None = None,
        shifted_controls: bool = True,
    ) -> None:
        if not samples:
            raise InputError("There are no samples to train on.")
        self.samples: Sequence[Sample] = samples
        self.latents: LatentCache = latents
        self.priors: Sequence[Sample] = priors
        self.prior_weight: float = prior_weight
        self.augmentation: Augmentation = augmentation
        self.clip_length: int = clip_length
        self.t5_length: int = t5_length
        self.image_features: Callable[[Sample, np.random.Generator], np.ndarray] | None = image_features
        self.shifted_controls: bool = shifted_controls
        self._sizes = [buckets.nearest(sample.size or sample.open().size) for sample in samples]
        self.plan: BatchPlan = BatchPlan(self._sizes, batch_size, seed)
        self._prior_plan = BatchPlan([(0, 0)] * len(priors), batch_size, seed) if priors else None

    @property
    def captions(self) -> list[str]:
        """All that will be read, but for ""."""
        return sorted({sample.caption for sample in (*self.samples, *self.priors)})

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Settings, as JSON values, that a resumed run must share."""
        return {
            "samples": len(self.samples),
            "priors": len(self.priors),
            "prior_weight": self.prior_weight,
            "batch_size": self.plan.batch_size,
            "augmentation": repr(self.augmentation),
            "buckets": sorted({f"{width}x{height}" for width, height in self._sizes}),
            "t5_length": self.t5_length,
        }

    def __call__(self, rng: np.random.Generator, number: int) -> Batch:
        indices = self.plan(number)
        size = self._sizes[indices[0]]
        chosen = [self.samples[i] for i in indices]
        if self._prior_plan is not None:
            chosen += [self.priors[i] for i in self._prior_plan(number)]
        crops = [self.augmentation.crop(size, rng) for _ in chosen]
        latents = np.stack([self._sampled(s, s.open, "", crop, rng) for s, crop in zip(chosen, crops)])
        controls = None
        if chosen[0].open_control is not None:
            pairs = zip(chosen, crops)
            controls = np.stack([self._sampled(s, s.open_control, "control", crop, rng) for s, crop in pairs])
        features = self.image_features
        return Batch(
            latents,
            [sample.caption for sample in chosen],
            self.clip_length,
            self.t5_length,
            controls,
            self._weights(len(indices), len(chosen)),
            None if features is None else np.stack([features(sample, rng) for sample in chosen]),
            len(chosen) - len(indices),
        )

    def prepare(self) -> None:
        """Encodes the centre of every picture now, so that the VAE's time is not spent in the first epoch."""
        for sample, size in zip(self.samples, self._sizes):
            crop = Crop(size)
            self.latents.posterior(_key(sample, "", crop), lambda s=sample, c=crop: c.apply(s.open()))

    def _sampled(self, sample, open_picture, role, crop, rng):
        mean, std = self.latents.posterior(_key(sample, role, crop), lambda: crop.apply(open_picture()))
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        shifted = self.shifted_controls or role != "control"
        return self.latents.scale(mean + std * noise, shifted).astype(np.float32)

    def _weights(self, instances, rows):
        """Of the rows: the mean over a batch is the instances' mean plus the weighted mean of the priors."""
        if rows == instances:
            return None
        priors = rows - instances
        weights = np.array([rows / instances] * instances + [self.prior_weight * rows / priors] * priors)
        return weights.astype(np.float32)


class Pictures:
    """Pictures without captions for :class:`~ppsd3.training.autoencoder.AutoencoderTask`, drawn anew for each batch.

    Args:
        samples: that can be opened.
        buckets: the sizes; a batch has one.
        augmentation: of pictures.
    """

    def __init__(
        self, samples: Sequence[Sample], buckets: Buckets, augmentation: Augmentation = Augmentation()
    ) -> None:
        self.samples: Sequence[Sample] = samples
        self.augmentation: Augmentation = augmentation
        self._sizes = [buckets.nearest(sample.size or sample.open().size) for sample in samples]

    def __call__(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """uint8 [count, H, W, 3]; those of one size, each once if there are so many."""
        size = self._sizes[rng.integers(len(self.samples))]
        members = [sample for sample, other in zip(self.samples, self._sizes) if other == size]
        chosen = rng.choice(len(members), count, replace=count > len(members))
        return np.stack([self.augmentation.crop(size, rng).apply(members[i].open()) for i in chosen])

    def first(self, count: int) -> list[np.ndarray]:
        """The centres of the first pictures of one size, at most ``count``, each uint8 [H, W, 3]."""
        same = [sample for sample, size in zip(self.samples, self._sizes) if size == self._sizes[0]]
        return [Crop(self._sizes[0]).apply(sample.open()) for sample in same[:count]]


def _key(sample, role, crop):
    return f"{sample.key} {sample.version} {role} {sample.is_prior} {crop}"
