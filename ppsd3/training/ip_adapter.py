"""Training task of an IP-adapter: the transformer's own task, with each picture as its own prompt beside the text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..models import IPAdapter, SD3Transformer2DModel
from ..models.ip_adapter import attach
from ..pipelines.stable_diffusion_3.prompt_cache import fingerprint
from ..utils.paddle_internals import no_grad
from .caches import TensorCache
from .data.samples import Sample
from .text_to_image import Batch, TextToImageTask


class IPAdapterTask(TextToImageTask):
    """Rectified flow matching on batches with ``image_embeds``; its transformer has an adapter, which is trained."""

    def predict(self, inputs: dict[str, Any], batch: Batch) -> paddle.Tensor:
        assert batch.image_embeds is not None
        picture = {"ip_adapter_image_embeds": paddle.to_tensor(batch.image_embeds)}
        return self.transformer(joint_attention_kwargs=picture, **inputs)[0]


class PictureFeatures:
    """What a frozen image encoder sees in whole pictures, each encoded once.

    Args:
        pipe: with ``image_encoder`` and ``feature_extractor``.
        directory: of the cache.
        dropout: probability that a picture is replaced by zeros, which is the negative prompt's picture.
    """

    def __init__(self, pipe: Any, directory: str | None, dropout: float) -> None:
        self.pipe: Any = pipe
        self.dropout: float = dropout
        self._cache = TensorCache(directory, fingerprint(pipe.image_encoder).hex())

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Encodes all pictures, and lets the image encoder go."""
        for sample in samples:
            self.of(sample)
        self.pipe.image_encoder = None

    @no_grad
    def of(self, sample: Sample) -> np.ndarray:
        """float32 [T, E]"""

        def encode():
            return {"features": self.pipe.encode_image(sample.open())[0].astype("float32")}

        return self._cache.get(f"{sample.key} {sample.version} {sample.is_prior}", encode)["features"].numpy()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        features = self.of(sample)
        return np.zeros_like(features) if rng.random() < self.dropout else features


@no_grad
def new_adapter(transformer: SD3Transformer2DModel, embed_dim: int, **sizes: int) -> IPAdapter:
    """Attaches a new IP-adapter to ``transformer``, which adds nothing before it is trained.

    Args:
        embed_dim: width of the image encoder's features.
        **sizes: see :class:`ppsd3.models.IPAdapter`.
    """
    adapter = IPAdapter(transformer.config, embed_dim, **sizes)
    for attention in adapter.ip_adapter:
        nn.initializer.Constant(0.0)(attention.to_v_ip.weight)
    attach(transformer, adapter)
    return adapter
