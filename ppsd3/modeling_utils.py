"""What every network of ppsd3 can do: load, save, change dtype, recompute activations."""

import paddle
from paddle import nn

from .configuration_utils import ConfigMixin


class ModelMixin(nn.Layer, ConfigMixin):
    """Base of the networks. Parameter names are the diffusers checkpoint names."""

    config_name = "config.json"
    weights_name = "diffusion_pytorch_model"
    _keep_in_fp32_modules = ()

    @property
    def dtype(self):
        """dtype of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.dtype.name in ("FP32",) or "float" in str(p.dtype))

    def num_parameters(self):
        """Number of scalars in the parameters."""
        return sum(int(p.size) for p in self.parameters())

    def enable_gradient_checkpointing(self):
        """Recompute each block's activations in the backward pass: less memory, about a third more time."""
        self._set_gradient_checkpointing(True)

    def disable_gradient_checkpointing(self):
        """Keep activations again."""
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, value):
        self.gradient_checkpointing = value
