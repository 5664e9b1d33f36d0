"""What is worked out once and read many times: latents and text conditions, by what they were made from.

An entry's key names all that it depends on, never its place in an order: under shuffling, latents stay with their own
captions.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable, Mapping

import numpy as np
import paddle

from ..models import AutoencoderKL
from ..pipelines.stable_diffusion_3.prompt_cache import fingerprint
from ..serialization.readers import SafetensorsFile
from ..serialization.writers import write_tensors
from ..utils.errors import CheckpointFormatError
from ..utils.files import atomic_write
from ..utils.paddle_internals import no_grad
from ..utils.types import Tensors
from .autoencoder import to_model_range


class TensorCache:
    """Small groups of tensors by key, in a file each, the latest ones in memory.

    Args:
        directory: made if missing; None keeps all in memory.
        prefix: part of every key: what made the tensors, e.g. a network's fingerprint.
        max_entries: most groups in memory, where there is a directory.
    """

    def __init__(self, directory: str | None, prefix: str, max_entries: int = 256) -> None:
        self.directory: str | None = directory
        self.prefix: str = prefix
        self.max_entries: int = max_entries
        self._entries: collections.OrderedDict[str, Tensors] = collections.OrderedDict()
        if directory is not None:
            os.makedirs(directory, exist_ok=True)

    def get(self, key: str, make: Callable[[], Mapping[str, paddle.Tensor | None]]) -> Tensors:
        """The tensors of ``key``; ``make()`` gives them if they are not there, or damaged."""
        name = hashlib.sha256(f"{self.prefix}\n{key}".encode()).hexdigest()[:40]
        found = self._entries.get(name) or self._read(name)
        if found is None:
            found = {part: tensor.detach() for part, tensor in make().items() if isinstance(tensor, paddle.Tensor)}
            self._write(name, found)
        self._entries[name] = found
        self._entries.move_to_end(name)
        while self.directory is not None and len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)
        return found

    def _path(self, name):
        return None if self.directory is None else os.path.join(self.directory, f"{name}.safetensors")

    def _read(self, name):
        path = self._path(name)
        if path is None or not os.path.isfile(path):
            return None
        try:
            file = SafetensorsFile(path)
            return {part: file.read(part) for part in file.keys()}
        except CheckpointFormatError:  # damaged: made anew
            return None

    def _write(self, name, tensors):
        path = self._path(name)
        if path is not None:
            with atomic_write(path) as file:
                write_tensors(file, tensors)


class LatentCache:
    """Posteriors of pictures under a frozen VAE, from which latents are sampled anew each time, as diffusers does.

    Args:
        vae: encodes what is not known.
        directory: of the files; None keeps all in memory.
    """

    def __init__(self, vae: AutoencoderKL, directory: str | None = None) -> None:
        self.vae: AutoencoderKL = vae
        self._cache = TensorCache(directory, fingerprint(vae).hex())

    @no_grad
    def posterior(self, key: str, pixels: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [C, H, W] of the picture ``key``, unscaled.

        Args:
            key: names the picture, how it was cropped and whether it was flipped.
            pixels: () -> uint8 [8H, 8W, 3]; called for a picture that is not known.
        """

        def encode():
            posterior = self.vae.encode(to_model_range(pixels()[None]), return_dict=False)[0]
            return {"mean": posterior.mean[0], "std": posterior.std[0]}

        found = self._cache.get(key, encode)
        return found["mean"].numpy(), found["std"].numpy()

    def scale(self, latents: np.ndarray, shifted: bool = True) -> np.ndarray:
        """As the transformer reads them: ``(z - shift_factor) * scaling_factor``.

        Args:
            shifted: False leaves the shift out, as some ControlNets read their pictures.
        """
        config = self.vae.config
        return (latents - (config.shift_factor or 0.0 if shifted else 0.0)) * config.scaling_factor
