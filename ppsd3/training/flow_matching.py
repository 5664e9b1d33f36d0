"""Rectified flow as a training objective: the path from data to noise, and what the network learns on it.

Data is at t = 0 and noise at t = 1 (paper, section 3; figures in section 2).
"""

from __future__ import annotations

import paddle


class RectifiedFlow:
    """``z_t = (1 - t) x0 + t eps``; the network predicts the constant velocity ``eps - x0``."""

    @staticmethod
    def alpha(t: paddle.Tensor) -> paddle.Tensor:
        """Share of the data at time ``t``."""
        return 1 - t

    @staticmethod
    def sigma(t: paddle.Tensor) -> paddle.Tensor:
        """Share of the noise at time ``t``."""
        return t

    def interpolate(self, x0: paddle.Tensor, noise: paddle.Tensor, t: paddle.Tensor) -> paddle.Tensor:
        """``x0, noise [B, ...]``, ``t [B]`` -> noisy sample [B, ...]."""
        t = _broadcast(t, x0)
        return self.alpha(t) * x0 + self.sigma(t) * noise

    @staticmethod
    def target(x0: paddle.Tensor, noise: paddle.Tensor) -> paddle.Tensor:
        """Velocity of the path: ``noise - x0``."""
        return noise - x0


def _broadcast(t, like):
    return t.reshape([-1] + [1] * (like.ndim - 1))
