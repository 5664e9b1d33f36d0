"""Linear layer with torch's weight layout.

``weight`` is ``[out_features, in_features]`` as in a diffusers file, so a checkpoint is mapped into the model and
saved from it without a transpose. ``paddle.nn.Linear`` keeps ``[in, out]``.
"""

import paddle
from paddle import nn


class Linear(nn.Layer):
    """``y = x W^T + b``.

    Args:
        in_features (int), out_features (int): sizes of the last axis before and after.
        bias (bool): whether there is a bias. Default True.

    Shapes: ``x [..., in_features]`` -> ``[..., out_features]``; ``weight [out_features, in_features]``,
    ``bias [out_features]`` or None.
    """

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = in_features**-0.5
        uniform = nn.initializer.Uniform(-bound, bound)  # torch.nn.Linear's own initialisation
        self.weight = self.create_parameter([out_features, in_features], default_initializer=uniform)
        self.bias = self.create_parameter([out_features], default_initializer=uniform) if bias else None

    def forward(self, x):
        y = paddle.matmul(x, self.weight, transpose_y=True)
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
