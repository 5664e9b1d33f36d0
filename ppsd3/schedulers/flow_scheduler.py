"""What the samplers of a flow have in common: a schedule, a position in it, and the forward process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import numpy as np
import paddle

from ..ops.shapes import cast
from ..utils.checking import Range, checks_arguments, shown
from ..utils.device import usable_device
from ..utils.errors import ConfigError, InputError
from ..utils.keywords import LOADING, takes_keywords_of
from ..utils.samplers import refuse_diffusion
from .scheduling_utils import SchedulerMixin

if TYPE_CHECKING:
    from typing_extensions import Self

Timestep = Union[float, int, np.floating, paddle.Tensor, np.ndarray]  # one, or where it is said one for each row
MOST_STEPS = 10_000
StepCount = Annotated[Optional[int], Range(1, MOST_STEPS)]
Sigmas = Annotated[Optional[Sequence[float]], Range(0, 1)]
Timesteps = Annotated[Optional[Sequence[float]], Range(0)]
Mu = Annotated[Optional[float], Range(-50, 50)]

# What a sampler need not know of another's configuration, as long as it is this.
_NEUTRAL = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "base_image_seq_len": (256,),
    "base_shift": (0.5,),
    "disable_corrector": ((), []),
    "euler_at_final": (True, False),
    "final_sigmas_type": ("zero",),
    "invert_sigmas": (False,),
    "lower_order_final": (True,),
    "max_image_seq_len": (4096,),
    "max_shift": (1.15,),
    "predict_x0": (True,),
    "prediction_type": ("flow_prediction",),
    "scale_factors": (None,),
    "shift_terminal": (None,),
    "solver_order": (1, 2, 3),
    "solver_p": (None,),
    "solver_type": ("midpoint", "heun", "bh1", "bh2"),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "time_shift_type": ("exponential",),
    "upscale_mode": ("nearest", "bilinear", "bicubic", "area"),
    "use_beta_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "use_exponential_sigmas": (False,),
    "use_flow_sigmas": (True,),
    "use_karras_sigmas": (False,),
    "use_lu_lambdas": (False,),
}


class FlowScheduler(SchedulerMixin):
    """Base of the samplers. A subclass makes the schedule (``set_timesteps``) and takes the steps (``step``).

    Attributes:
        order: model calls per step; ``timesteps`` has them all.
        num_inference_steps: of the last ``set_timesteps``.
    """

    order = 1
    num_inference_steps: int | None
    _step_index: Any  # an int; None before the first step
    _begin_index: int | None
    _solver_types: tuple[str, ...] = ()
    ignored_config_keys = ("skip_prk_steps",)  # PNDM's, which ppdiffusers' deployment gives to samplers of flows too
    _config_aliases: dict[str, str] = {}  # another sampler's key -> ours for the same thing

    @classmethod
    @takes_keywords_of(LOADING)
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """Makes the sampler from its own configuration, or from that of another sampler of flows.

        ``shift`` and ``flow_shift`` are one thing by two names. What the other has and this class has not is left out
        if it changes nothing here.

        Raises:
            ConfigError: a key that would be lost, or is unknown; or the configuration of a sampler of diffusion models.
        """
        refuse_diffusion({**config, **overrides}, own=[cls.__name__, *(kind.__name__ for kind in cls._family())])
        known, own = set(cls._known_keys()), {}
        for key, value in config.items():
            key = key if key in known else cls._config_aliases.get(key, key)
            if key in known or key not in _NEUTRAL or value not in _NEUTRAL[key]:
                own[key] = value
        if own.get("solver_type") not in (None, *cls._solver_types):  # each solver has its own kinds
            del own["solver_type"]
        return super().from_config({k: v for k, v in own.items() if k != "_class_name"}, **overrides)

    @classmethod
    def _family(cls) -> list[type[FlowScheduler]]:
        """All samplers of flows that are known by now."""
        found = [FlowScheduler]
        for kind in found:
            found.extend(kind.__subclasses__())
        return found

    # The schedule lives twice: as numpy for the arithmetic on single steps, which must not launch kernels or wait
    # for a device, and as tensors for the caller.
    def _install(self, sigmas, timesteps, device=None):
        place = paddle.CPUPlace() if device is None else usable_device(device)
        self._sigma_array, self._timestep_array = sigmas, timesteps
        self._sigma_tensor = paddle.to_tensor(sigmas, place=place)
        self._timestep_tensor = paddle.to_tensor(timesteps, place=place)
        self._step_index = self._begin_index = None

    @property
    def sigmas(self) -> paddle.Tensor:
        """float32 tensor: ``[n + 1]``, the last one the terminal 0 or 1; before ``set_timesteps`` the table ``[T]``."""
        return self._sigma_tensor

    @property
    def timesteps(self) -> paddle.Tensor:
        """float32 tensor ``[n]``: what the model is called with, step by step."""
        return self._timestep_tensor

    @property
    def step_index(self) -> int | None:
        """Index of the coming step; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step if ``set_begin_index`` named one, else None: it is then looked up by timestep."""
        return self._begin_index

    @checks_arguments
    def set_begin_index(self, begin_index: Annotated[int, Range(0)] = 0) -> None:
        """Names the first step, for sampling that starts in the middle of the schedule (image to image)."""
        self._begin_index = begin_index

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return 1.0

    @checks_arguments
    def index_for_timestep(self, timestep: Timestep, schedule_timesteps: Timesteps = None) -> int:
        """Index of ``timestep`` (float or tensor of one value) in the schedule, or in ``schedule_timesteps``.

        The match is exact. Of several matches it is the second, so that a run that starts in the middle of a
        schedule with repeated timesteps skips no sigma.

        Raises:
            InputError: the schedule does not hold it.
        """
        schedule = self._timestep_array if schedule_timesteps is None else np.asarray(schedule_timesteps, np.float32)
        wanted = np.asarray(timestep, np.float32).reshape(-1)
        if len(wanted) != 1 or not len(schedule):
            raise InputError(f"{len(wanted)} timesteps of a schedule of {len(schedule)}: give one timestep of several.")
        indices = np.flatnonzero(schedule == wanted)
        if not len(indices):
            nearest = schedule[np.abs(schedule - wanted).argmin()]
            raise InputError(
                f"Timestep {wanted.item()!r} is not in the schedule; the nearest one is {nearest.item()!r}. "
                "Take it from scheduler.timesteps rather than computing it."
            )
        return int(indices[1 if len(indices) > 1 else 0])

    @checks_arguments
    def scale_noise(
        self, sample: paddle.Tensor, timestep: Timestep, noise: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        """The forward process: ``sigma noise + (1 - sigma) sample``.

        Args:
            sample: [B, ...], the clean sample.
            timestep: [], one for all rows, or one per row. After
                ``set_begin_index`` or the first ``step`` the scheduler's own position is used in its place.
            noise: of the sample's shape; required.

        Returns:
            tensor of the sample's shape and dtype, computed in float32.

        Raises:
            InputError: ``noise`` is missing, or the number of timesteps is neither 1 nor B.
        """
        if noise is None:
            raise InputError("scale_noise needs noise=, e.g. ppsd3.utils.random.randn(sample.shape, generator).")
        if noise.shape != sample.shape:
            raise other_shape("noise", noise, sample)
        timesteps = np.asarray(timestep, np.float32).reshape(-1)
        if len(timesteps) not in (1, sample.shape[0]):
            raise InputError(f"scale_noise got {len(timesteps)} timesteps for {sample.shape[0]} samples; give 1 or B.")
        if self.begin_index is None:
            indices = [self.index_for_timestep(t) for t in timesteps]
        else:  # before the first step (image to image), or after one (inpainting)
            index = self.begin_index if self.step_index is None else self.step_index
            indices = [index] * len(timesteps)
        sigma = paddle.to_tensor(self._sigma_array[indices]).reshape([-1] + [1] * (sample.ndim - 1))
        return cast(sigma * cast(noise, paddle.float32) + (1.0 - sigma) * cast(sample, paddle.float32), sample.dtype)

    def _begin_step(self, timestep, model_output, sample):
        """Finds the position of a run's first step."""
        if model_output.shape != sample.shape:
            raise other_shape("model_output", model_output, sample)
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index

    def _step_sigmas(self):
        """``sigma, sigma_next, sigma_next - sigma`` of the coming step as Python floats that float32 holds exactly."""
        if self._step_index + 1 >= len(self._sigma_array):
            raise InputError(
                f"The schedule has {len(self._sigma_array) - 1} steps and all are done; call set_timesteps again."
            )
        sigma, sigma_next = self._sigma_array[self._step_index : self._step_index + 2]
        return float(sigma), float(sigma_next), float(sigma_next - sigma)

    def _count_steps(self, **given: Any) -> int:
        """The one number of steps that all of ``given`` (int, sequence or None) agree on.

        Raises:
            InputError: nothing is given, numbers differ, or it is below 1.
        """
        known = {name: value for name, value in given.items() if value is not None}
        counts = {name: value if isinstance(value, int) else len(value) for name, value in known.items()}
        if not counts:
            raise InputError(f"set_timesteps needs {', '.join(given)}: one of these.")
        if len(set(counts.values())) > 1 or min(counts.values()) < 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"set_timesteps needs one number of steps, at least 1; it was given {listed}.")
        return next(iter(counts.values()))

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def check_falling(name: str, values: Sequence[float] | None, strictly: bool = False) -> None:
    """Raises InputError if one of ``values`` is above the one before it, or with ``strictly`` equal to it."""
    for i, (before, after) in enumerate(zip(values or [], (values or [])[1:])):
        if after > before or (strictly and after == before):
            raise InputError(
                f"`{name}` goes from {before} to {after} at place {i + 1}, but a schedule falls from noise to picture. "
                "Pass the levels from high to low" + (", each once." if strictly else ".")
            )


def other_shape(name: str, tensor: paddle.Tensor, sample: paddle.Tensor) -> InputError:
    """The error for a ``tensor`` that has not the shape of ``sample``, or of its first axes."""
    return InputError(f"`{name}` has the shape {list(tensor.shape)}, which does not fit `sample` {list(sample.shape)}.")


def refuse_integer(timestep: Timestep) -> None:
    """Raises InputError if ``timestep`` is an index rather than an entry of ``timesteps``."""
    is_integer = isinstance(timestep, (int, np.integer)) or (
        isinstance(timestep, (paddle.Tensor, np.ndarray)) and "int" in str(timestep.dtype)
    )
    if is_integer:
        raise InputError(
            f"step got the integer timestep {timestep}; pass an entry of scheduler.timesteps, not its index."
        )


def check_choice(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raises ConfigError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ConfigError(f"{name}={shown(value)} is not known; use one of {', '.join(map(repr, known))}.")
