"""Training task of a ControlNet: the transformer's own task, with the transformer frozen."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn

from ..models import SD3ControlNetModel, SD3Transformer2DModel
from ..utils.checking import checks_arguments
from .text_to_image import Batch, Batches, TextToImageTask
from .texts import Texts


class ControlNetTask(TextToImageTask):
    """Rectified flow matching on batches with ``controls``; only the ControlNet is trained.

    Args:
        controlnet: trained in place, e.g. from :meth:`SD3ControlNetModel.from_transformer`.
        transformer: frozen.
        **options: the other arguments of :class:`TextToImageTask`.
    """

    @checks_arguments
    def __init__(
        self,
        controlnet: SD3ControlNetModel,
        transformer: SD3Transformer2DModel,
        texts: Texts,
        batches: Batches,
        **options: Any,
    ) -> None:
        super().__init__(transformer, texts, batches, **options)
        transformer.eval()
        for parameter in transformer.parameters():
            parameter.stop_gradient = True
        self.controlnet: SD3ControlNetModel = controlnet
        self.layers: dict[str, nn.Layer] = {"controlnet": controlnet}

    def predict(self, inputs: dict[str, Any], batch: Batch) -> paddle.Tensor:
        assert batch.controls is not None
        asked = dict(inputs, controlnet_cond=paddle.to_tensor(batch.controls))
        if self.controlnet.config.force_zeros_for_pooled_projection:  # as pipelines ask it
            asked["pooled_projections"] = paddle.zeros_like(inputs["pooled_projections"])
        residuals = self.controlnet(**asked)[0]
        return self.transformer(block_controlnet_hidden_states=residuals, **inputs)[0]
