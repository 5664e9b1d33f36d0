"""Small pictures of what is being drawn, while it is drawn.

::

    preview = ppsd3.LatentPreview.of(pipe)
    pipe(prompt, callback_on_step_end=preview.callback(lambda step, images: images[0].save(f"{step:02}.png")))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Callable, Union

import numpy as np
import paddle
from PIL import Image

from ..models import AutoencoderTiny
from ..utils.checking import FINITE, Range, checks_arguments
from ..utils.errors import InputError
from ..utils.paddle_internals import no_grad
from .image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from .pipeline_utils import DiffusionPipeline

# Latents as the transformer sees them -> RGB in [-1, 1], a pixel for each latent position. From ``SD3LatentFormat`` of
# Stability-AI/sd3.5 (MIT licence); for the VAE that all published models of SD3 and 3.5 share.
SD3_FACTORS = (
    *((-0.0645, 0.0177, 0.1052), (0.0028, 0.0312, 0.0650), (0.1848, 0.0762, 0.0360), (0.0944, 0.0360, 0.0889)),
    *((0.0897, 0.0506, -0.0364), (-0.0020, 0.1203, 0.0284), (0.0855, 0.0118, 0.0283), (-0.0539, 0.0658, 0.1047)),
    *((-0.0057, 0.0116, 0.0700), (-0.0412, 0.0281, -0.0039), (0.1106, 0.1171, 0.1220), (-0.0248, 0.0682, -0.0481)),
    *((0.0815, 0.0846, 0.1207), (-0.0120, -0.0055, -0.0867), (-0.0749, -0.0634, -0.0456), (-0.1418, -0.1457, -0.1259)),
)
Numbers1D = Annotated[Union[np.ndarray, Sequence[float]], FINITE]
Numbers2D = Annotated[Union[np.ndarray, Sequence[Sequence[float]]], FINITE]
_SD3_SCALING = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
_FIT_PICTURES, _FIT_SIDE, _FIT_RIDGE = 8, 16, 1e-3  # pictures, latent positions a side, regularization per sample


class LatentPreview:
    """Latents [B, C, H, W] -> B small PIL pictures.

    Args:
        vae: decodes them, to 8H x 8W pixels.
        factors, bias: [C, 3] and [3], without ``vae``: a linear projection to H x W pixels, next to no work. Default:
            those of SD3's VAE.

    Raises:
        InputError: both ``vae`` and ``factors``, or factors of another shape.
    """

    @checks_arguments
    def __init__(
        self, vae: AutoencoderTiny | None = None, factors: Numbers2D | None = None, bias: Numbers1D | None = None
    ):
        if vae is not None and (factors is not None or bias is not None):
            raise InputError("LatentPreview takes a `vae` or `factors` (with their `bias`), not both.")
        self.vae = vae
        self.factors = _array(SD3_FACTORS if factors is None else factors)
        self.bias = _array([0.0] * 3 if bias is None else bias)
        if self.factors.ndim != 2 or self.factors.shape[-1] != 3 or self.bias.shape != (3,):
            raise InputError(
                f"`factors` has the shape {list(self.factors.shape)} and `bias` {list(self.bias.shape)}; they have "
                "to be [channels, 3] and [3]."
            )

    @classmethod
    def of(cls, pipe: DiffusionPipeline) -> LatentPreview:
        """The preview for the latents of ``pipe``: its VAE if that is tiny, else a projection, fitted unless the VAE is
        SD3's own."""
        with pipe.using("vae") as vae:
            if type(vae).__name__ == "AutoencoderTiny":
                return cls(vae=vae)
            known = all(vae.config[name] == value for name, value in _SD3_SCALING.items())
            return cls() if known else cls.fit(vae)

    @classmethod
    @no_grad
    def fit(cls, vae: Any, seed: int = 0) -> LatentPreview:
        """The projection that comes closest to ``vae``, from a few smooth pictures that it encodes.

        Args:
            vae: an :class:`AutoencoderKL`, or anything with its ``encode``, ``scale_latents`` and ``spatial_factor``.
            seed: of the pictures.
        """
        colours = _smooth_pictures(_FIT_PICTURES, _FIT_SIDE, np.random.RandomState(seed))  # [n, 3, s, s]
        pixels = np.kron(colours, np.ones((1, 1, vae.spatial_factor, vae.spatial_factor), np.float32))
        encoded = vae.encode(paddle.to_tensor(pixels).astype(vae.dtype)).latent_dist.mode()
        latents = vae.scale_latents(encoded).astype("float32").numpy()
        samples = latents.transpose(0, 2, 3, 1).reshape(-1, latents.shape[1])
        targets = colours.transpose(0, 2, 3, 1).reshape(-1, 3)
        centre, mean = samples.mean(0), targets.mean(0)
        gram = (samples - centre).T @ (samples - centre)
        ridge = _FIT_RIDGE * len(samples) * np.eye(len(gram), dtype=np.float32)
        factors = np.linalg.solve(gram + ridge, (samples - centre).T @ (targets - mean))
        return cls(factors=factors, bias=mean - centre @ factors)

    @no_grad
    @checks_arguments
    def __call__(self, latents: paddle.Tensor) -> list[Image.Image]:
        """``latents [B, C, H, W]``, scaled as the transformer sees them -> list of B PIL pictures."""
        channels = len(self.factors) if self.vae is None else self.vae.config.latent_channels
        if len(latents.shape) != 4 or latents.shape[1] != channels:
            raise InputError(
                f"latents have the shape {list(latents.shape)}, and this preview is of [B, {channels}, H, W]. Make one "
                "for this model: LatentPreview.of(pipe)."
            )
        if self.vae is None:
            array = latents.astype("float32").numpy().transpose(0, 2, 3, 1) @ self.factors + self.bias
        else:
            unscaled = self.vae.unscale_latents(latents.astype(self.vae.dtype))
            sample = self.vae.decode(unscaled, return_dict=False)[0]
            array = sample.astype("float32").numpy().transpose(0, 2, 3, 1)
        return VaeImageProcessor.numpy_to_pil(np.clip(array / 2 + 0.5, 0, 1))

    @checks_arguments
    def callback(
        self, show: Callable[[int, list[Image.Image]], Any], every: Annotated[int, Range(1)] = 1
    ) -> Callable[..., dict[str, Any]]:
        """A ``callback_on_step_end`` that calls ``show(step, images)`` after every ``every``-th step.

        From two steps in a row it knows the velocity, and shows where that leads: the picture as the model sees it by
        then, without the noise that is left. Only at the first step, and with schedulers that have no ``sigmas``, it
        shows the latents as they are. Make a new one for each call of the pipeline.
        """
        before: list[paddle.Tensor] = []

        def on_step_end(pipe, step, timestep, tensors):
            latents = tensors["latents"]
            if (step + 1) % every == 0:
                show(step, self(_without_noise(before[-1] if before else None, latents, pipe.scheduler)))
            before[:] = [latents]
            return {}

        return on_step_end


def _array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float32)
    except ValueError:  # lists of several lengths
        return np.zeros(0, np.float32)


def _without_noise(before, after, scheduler):
    """Where the straight line through two successive latents reaches sigma 0."""
    sigmas, step = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if before is None or sigmas is None or not step or step >= len(sigmas):
        return after
    was, now = float(sigmas[step - 1]), float(sigmas[step])
    if now == 0 or was == now:
        return after
    before, after = before.astype("float32"), after.astype("float32")
    return after - (after - before) * (now / (now - was))


def _smooth_pictures(count, side, rng):
    """float32 [count, 3, side, side] in [-1, 1]: colours that change slowly, all of them present."""
    coarse = rng.uniform(-1.3, 1.3, (count, 3, 5, 5))
    places = np.linspace(0, 4, side)
    below = np.minimum(places.astype(int), 3)
    weight = np.zeros((side, 5))
    weight[np.arange(side), below], weight[np.arange(side), below + 1] = 1 - (places - below), places - below
    return np.clip(weight @ coarse @ weight.T, -1, 1).astype(np.float32)
