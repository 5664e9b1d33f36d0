"""Euler steps along the flow from noise to picture; counterpart of diffusers' class of the same name."""

import importlib.util

import numpy as np
import paddle

from ..configuration_utils import ConfigMixin, register_to_config
from ..utils.errors import ConfigError, InputError
from ..utils.logging import get_logger
from ..utils.random import randn
from . import flow_sigmas
from .scheduling_utils import SchedulerMixin, SchedulerOutput

logger = get_logger(__name__)


class FlowMatchEulerDiscreteScheduler(SchedulerMixin, ConfigMixin):
    """``x_next = x + (sigma_next - sigma) v`` with the model's velocity ``v = noise - x_0``.

    ``sigmas`` and ``timesteps`` have the bits of diffusers 0.42 in every mode. The state is a schedule and a
    position in it; the schedules themselves are the functions of ``flow_sigmas``.

    Args:
        num_train_timesteps (int): T; ``timestep = sigma * T``. Default 1000.
        shift (float): static shift of the schedule towards noise; SD3 has 3.0. Default 1.0.
        use_dynamic_shifting (bool): shift by the ``mu`` given to ``set_timesteps`` instead. Default False.
        base_shift, max_shift (float), base_image_seq_len, max_image_seq_len (int): ``mu`` at two numbers of image
            tokens, read by pipelines, which interpolate. Defaults 0.5 at 256 and 1.15 at 4096.
        invert_sigmas (bool): run on ``1 - sigma`` (Mochi). Default False.
        shift_terminal (float, optional): stretch the schedule to end at this sigma, in (0, 1) (LTX-Video).
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas (bool): other spacing between the first and the
            last sigma; at most one; beta needs scipy. Default False.
        time_shift_type (str): "exponential" (default) or "linear", the form of the dynamic shift.
        stochastic_sampling (bool): each step goes to the predicted picture and is noised anew. Default False.

    Raises:
        ConfigError: a value that cannot be used, two spacings at once, or beta sigmas without scipy.

    Attributes:
        num_inference_steps (int or None): of the last ``set_timesteps``.
        sigma_min, sigma_max (float): ends of the training table, after the static shift.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=False,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        invert_sigmas=False,
        shift_terminal=None,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        time_shift_type="exponential",
        stochastic_sampling=False,
    ):
        _check_config(self.config)
        self.num_inference_steps = None
        self._shift = float(shift)
        sigmas = flow_sigmas.training_sigmas(num_train_timesteps, 1.0 if use_dynamic_shifting else self._shift)
        self.sigma_min, self.sigma_max = float(sigmas[-1]), float(sigmas[0])
        self._install(sigmas, sigmas * num_train_timesteps)

    # The schedule lives twice: as numpy for the arithmetic on single steps, which must not launch kernels or wait
    # for a device, and as tensors for the caller.
    def _install(self, sigmas, timesteps, device=None):
        place = paddle.CPUPlace() if device is None else device
        self._sigma_array, self._timestep_array = sigmas, timesteps
        self._sigma_tensor = paddle.to_tensor(sigmas, place=place)
        self._timestep_tensor = paddle.to_tensor(timesteps, place=place)
        self._step_index = self._begin_index = None

    @property
    def sigmas(self):
        """float32 tensor: ``[n + 1]``, the last one the terminal 0 or 1; before ``set_timesteps`` the table ``[T]``."""
        return self._sigma_tensor

    @property
    def timesteps(self):
        """float32 tensor ``[n]``: what the model is called with, step by step."""
        return self._timestep_tensor

    @property
    def shift(self):
        """The static shift that the next ``set_timesteps`` will use."""
        return self._shift

    @property
    def step_index(self):
        """Index of the coming step; None before the first one."""
        return self._step_index

    @property
    def begin_index(self):
        """Index of the first step if ``set_begin_index`` named one, else None: it is then looked up by timestep."""
        return self._begin_index

    def set_begin_index(self, begin_index=0):
        """Names the first step, for sampling that starts in the middle of the schedule (image to image)."""
        self._begin_index = begin_index

    def set_shift(self, shift):
        """Replaces the static shift for later ``set_timesteps``; ``config``, ``sigma_min`` and ``sigma_max`` stay."""
        self._shift = float(shift)

    def time_shift(self, mu, sigma, t):
        """The dynamic shift of ``t`` (array or tensor) in the form that ``config.time_shift_type`` names."""
        return flow_sigmas.TIME_SHIFTS[self.config.time_shift_type](mu, sigma, t)

    def stretch_shift_to_terminal(self, t):
        """``t`` (array or tensor ``[n]``), stretched so that its last value is ``config.shift_terminal``.

        Raises:
            InputError: the configuration has no ``shift_terminal``, or the last value is 1, from which no step leads.
        """
        if not self.config.shift_terminal:
            raise InputError("stretch_shift_to_terminal needs a scheduler made with shift_terminal=, e.g. 0.1.")
        if float(t[-1]) == 1.0:
            raise InputError("A schedule that ends at sigma 1 cannot be stretched; use more steps, or lower sigmas.")
        stretched = flow_sigmas.stretch_shift_to_terminal(np.asarray(t), self.config.shift_terminal)
        return paddle.to_tensor(stretched, place=t.place) if isinstance(t, paddle.Tensor) else stretched

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        """Makes the schedule of a run and forgets the position in the last one.

        Args:
            num_inference_steps (int, optional): n; may be left out beside ``sigmas`` or ``timesteps``.
            device (str or place, optional): where ``sigmas`` and ``timesteps`` are put. Default CPU.
            sigmas (sequence of float, optional): ``[n]`` to use, falling; still shifted and converted.
            mu (float, optional): amount of dynamic shift; required by, and only for, ``use_dynamic_shifting``.
            timesteps (sequence of float, optional): ``[n]`` the model is called with. Alone they also give the
                sigmas, which are shifted while the timesteps are not: pass both to have both as you want them.

        Raises:
            InputError: lengths that disagree, nothing to count steps by, or ``mu`` missing or without use.
        """
        num_steps = self._check_schedule_arguments(num_inference_steps, sigmas, mu, timesteps)
        given = None if timesteps is None else np.array(timesteps).astype(np.float32)
        if sigmas is not None:
            schedule = np.array(sigmas).astype(np.float32)
        elif given is not None:
            schedule = given / self.config.num_train_timesteps
            logger.warning(
                "set_timesteps got timesteps without sigmas: the sigmas made from them are shifted, the timesteps "
                "are used as they are, and so the two may disagree. Pass sigmas, or both."
            )
        else:
            schedule = self._default_sigmas(num_steps)

        schedule = self._spaced(self._shifted(schedule, mu), num_steps)
        table = flow_sigmas.with_terminal(schedule, self.config.invert_sigmas)
        if given is None or self.config.invert_sigmas:
            given = table[:-1] * self.config.num_train_timesteps
        self._install(table, given, device)
        self.num_inference_steps = num_steps

    def _default_sigmas(self, num_steps):
        # sigma_min is already shifted and is shifted again below. The models are sampled so everywhere; undoing it
        # would change their pictures.
        scale = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * scale, self.sigma_min * scale, num_steps) / scale

    def _shifted(self, sigmas, mu):
        if self.config.use_dynamic_shifting:
            with np.errstate(divide="ignore"):  # a sigma of 0 stays 0 by way of 1/0 = inf
                sigmas = self.time_shift(float(mu), 1.0, sigmas)
        else:
            sigmas = flow_sigmas.shift_sigmas(sigmas, self.shift)
        return self.stretch_shift_to_terminal(sigmas) if self.config.shift_terminal else sigmas

    def _spaced(self, sigmas, num_steps):
        first, last = sigmas[0].item(), sigmas[-1].item()
        if self.config.use_karras_sigmas:
            return flow_sigmas.karras_sigmas(last, first, num_steps)
        if self.config.use_exponential_sigmas:
            if min(first, last) <= 0:
                raise InputError(f"Exponential spacing needs sigmas above 0; these run from {first} to {last}.")
            return flow_sigmas.exponential_sigmas(last, first, num_steps)
        if self.config.use_beta_sigmas:
            return flow_sigmas.beta_sigmas(last, first, num_steps)
        return sigmas

    def _check_schedule_arguments(self, num_inference_steps, sigmas, mu, timesteps):
        """The number of steps, after refusing what does not fit together."""
        if self.config.use_dynamic_shifting and mu is None:
            raise InputError("This scheduler has use_dynamic_shifting=True: pass set_timesteps(..., mu=).")
        if mu is not None and not self.config.use_dynamic_shifting:
            raise InputError(
                f"mu={mu} would change nothing: this scheduler has use_dynamic_shifting=False. Leave mu out, or make "
                "the scheduler with use_dynamic_shifting=True; set_shift(shift) changes the static shift."
            )
        named = {"num_inference_steps": num_inference_steps}
        named.update((name, len(v)) for name, v in (("sigmas", sigmas), ("timesteps", timesteps)) if v is not None)
        counts = {name: count for name, count in named.items() if count is not None}
        if not counts:
            raise InputError("set_timesteps needs num_inference_steps, sigmas or timesteps.")
        if len(set(counts.values())) > 1 or min(counts.values()) < 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"set_timesteps needs one number of steps, at least 1; it was given {listed}.")
        return next(iter(counts.values()))

    def index_for_timestep(self, timestep, schedule_timesteps=None):
        """Index of ``timestep`` (float or tensor of one value) in the schedule, or in ``schedule_timesteps``.

        The match is exact. Of several matches it is the second, so that a run that starts in the middle of a
        schedule with repeated timesteps skips no sigma.

        Raises:
            InputError: the schedule does not hold it.
        """
        schedule = self._timestep_array if schedule_timesteps is None else np.asarray(schedule_timesteps)
        indices = np.flatnonzero(schedule == np.float32(float(timestep)))
        if not len(indices):
            nearest = schedule[np.abs(schedule - float(timestep)).argmin()]
            raise InputError(
                f"Timestep {float(timestep)!r} is not in the schedule; the nearest one is {float(nearest)!r}. "
                "Take it from scheduler.timesteps rather than computing it."
            )
        return int(indices[1 if len(indices) > 1 else 0])

    def scale_noise(self, sample, timestep, noise=None):
        """The forward process: ``sigma noise + (1 - sigma) sample``.

        Args:
            sample (tensor ``[B, ...]``): the clean sample.
            timestep (float or tensor ``[]``, ``[1]`` or ``[B]``): one for all rows, or one per row. After
                ``set_begin_index`` or the first ``step`` the scheduler's own position is used in its place.
            noise (tensor): of the sample's shape; required.

        Returns:
            tensor of the sample's shape and dtype, computed in float32.

        Raises:
            InputError: ``noise`` is missing, or the number of timesteps is neither 1 nor B.
        """
        if noise is None:
            raise InputError("scale_noise needs noise=, e.g. ppsd3.utils.random.randn(sample.shape, generator).")
        timesteps = np.asarray(timestep, np.float32).reshape(-1)
        if len(timesteps) not in (1, sample.shape[0]):
            raise InputError(f"scale_noise got {len(timesteps)} timesteps for {sample.shape[0]} samples; give 1 or B.")
        if self.begin_index is None:
            indices = [self.index_for_timestep(t) for t in timesteps]
        else:  # before the first step (image to image), or after one (inpainting)
            index = self.begin_index if self.step_index is None else self.step_index
            indices = [index] * len(timesteps)
        sigma = paddle.to_tensor(self._sigma_array[indices]).reshape([-1] + [1] * (sample.ndim - 1))
        return _cast(sigma * _cast(noise, paddle.float32) + (1.0 - sigma) * _cast(sample, paddle.float32), sample.dtype)

    def step(
        self,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        per_token_timesteps=None,
        return_dict=True,
    ):
        """One Euler step, in float32.

        Args:
            model_output (tensor ``[B, ...]``): the velocity.
            timestep (float or float tensor): an entry of ``timesteps``; read only to find the first step's index.
            sample (tensor ``[B, ...]``): the current sample.
            s_churn, s_tmin, s_tmax, s_noise (float): present for diffusers' signature, which ignores them; any
                value but the default is refused.
            generator: source of the noise of stochastic sampling, as in ``utils.random.randn``.
            per_token_timesteps (tensor ``[B, N]``, optional): one timestep per token of a ``[B, N, C]`` sample.
                Each token goes to the next lower sigma of the schedule; as in diffusers the step is then
                ``sigma - sigma_next`` (a model that predicts the opposite velocity) and the result stays float32.
            return_dict (bool): False returns ``(prev_sample,)``.

        Returns:
            SchedulerOutput with ``prev_sample`` in the dtype of ``model_output``.

        Raises:
            InputError: an integer timestep, a churn argument, or no step left in the schedule.
        """
        _check_step_arguments(timestep, s_churn, s_tmin, s_tmax, s_noise)
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index

        velocity, sample = _cast(model_output, paddle.float32), _cast(sample, paddle.float32)
        if per_token_timesteps is not None:
            sigma, sigma_next, dt = self._per_token_sigmas(per_token_timesteps)
        else:
            sigma, sigma_next, dt = self._step_sigmas()

        if self.config.stochastic_sampling:
            x_0 = sample - sigma * velocity
            prev_sample = (1.0 - sigma_next) * x_0 + sigma_next * randn(sample.shape, generator)
        else:
            prev_sample = sample + dt * velocity

        self._step_index += 1
        if per_token_timesteps is None:
            prev_sample = _cast(prev_sample, model_output.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _step_sigmas(self):
        """``sigma, sigma_next, sigma_next - sigma`` of the coming step as Python floats that float32 holds exactly."""
        if self._step_index + 1 >= len(self._sigma_array):
            raise InputError(
                f"The schedule has {len(self._sigma_array) - 1} steps and all are done; call set_timesteps again."
            )
        sigma, sigma_next = self._sigma_array[self._step_index : self._step_index + 2]
        return float(sigma), float(sigma_next), float(sigma_next - sigma)

    def _per_token_sigmas(self, per_token_timesteps):
        """The same three as float32 tensors ``[B, N, 1]``, with dt positive."""
        sigma = _cast(per_token_timesteps, paddle.float32) / self.config.num_train_timesteps  # [B, N]
        table = paddle.to_tensor(self._sigma_array)[:, None, None]  # [n + 1, 1, 1]
        lower = (table < sigma[None] - 1e-6).astype(paddle.float32) * table  # [n + 1, B, N], 0 where not lower
        sigma, sigma_next = sigma[..., None], lower.max(axis=0)[..., None]
        return sigma, sigma_next, sigma - sigma_next

    def __len__(self):
        return self.config.num_train_timesteps


def _cast(tensor, dtype):
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def _check_config(config):
    spacings = [k for k in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if config[k]]
    if len(spacings) > 1:
        raise ConfigError(f"{' and '.join(spacings)} exclude one another; set only one of them.")
    if config.use_beta_sigmas and importlib.util.find_spec("scipy") is None:
        raise ConfigError("use_beta_sigmas=True needs scipy: `pip install scipy`, or choose another spacing.")
    if config.time_shift_type not in flow_sigmas.TIME_SHIFTS:
        known = ", ".join(flow_sigmas.TIME_SHIFTS)
        raise ConfigError(f"time_shift_type={config.time_shift_type!r} is not known; use one of {known}.")
    if config.num_train_timesteps < 1:
        raise ConfigError(f"num_train_timesteps={config.num_train_timesteps} must be at least 1.")
    if not config.shift > 0:
        raise ConfigError(f"shift={config.shift} must be above 0; 1 leaves the schedule as it is.")
    if config.shift_terminal and not 0 < config.shift_terminal < 1:
        raise ConfigError(f"shift_terminal={config.shift_terminal} must lie between 0 and 1, or be None.")


def _check_step_arguments(timestep, s_churn, s_tmin, s_tmax, s_noise):
    is_integer = isinstance(timestep, (int, np.integer)) or (
        isinstance(timestep, (paddle.Tensor, np.ndarray)) and "int" in str(timestep.dtype)
    )
    if is_integer:
        raise InputError(
            f"step got the integer timestep {timestep}; pass an entry of scheduler.timesteps, not its index."
        )
    if (s_churn, s_tmin, s_tmax, s_noise) != (0.0, 0.0, float("inf"), 1.0):
        raise InputError(
            "s_churn, s_tmin, s_tmax and s_noise have no effect in flow matching's Euler step; leave them out, "
            "or make the scheduler with stochastic_sampling=True."
        )
