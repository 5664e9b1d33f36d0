"""Samplers of the flow: pure sigma schedules (``flow_sigmas``) and stateful classes over them."""

from .scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from .scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from .scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from .scheduling_flow_match_lcm import FlowMatchLCMScheduler
from .scheduling_unipc_multistep import UniPCMultistepScheduler
from .scheduling_utils import SchedulerMixin, SchedulerOutput

__all__ = [
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "SchedulerMixin",
    "SchedulerOutput",
    "UniPCMultistepScheduler",
]
