"""Training task of a ControlNet: the transformer's own task, with the transformer held still."""

import paddle

from .text_to_image import TextToImageTask


class ControlNetTask(TextToImageTask):
    """Rectified flow matching on batches that have ``controls`` too; only the ControlNet learns.

    Args:
        controlnet (SD3ControlNetModel): trained in place, e.g. from :meth:`SD3ControlNetModel.from_transformer`.
        transformer (SD3Transformer2DModel): frozen.
        **options: the other arguments of :class:`TextToImageTask`.
    """

    def __init__(self, controlnet, transformer, encoders, batches, **options):
        super().__init__(transformer, encoders, batches, **options)
        transformer.eval()
        for parameter in transformer.parameters():
            parameter.stop_gradient = True
        self.controlnet, self.layers = controlnet, {"controlnet": controlnet}

    def velocity(self, inputs, batch):
        residuals = self.controlnet(controlnet_cond=paddle.to_tensor(batch.controls), **inputs)[0]
        return self.transformer(block_controlnet_hidden_states=residuals, **inputs)[0]
