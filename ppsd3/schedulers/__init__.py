"""Samplers of the flow: pure sigma schedules (``flow_sigmas``) and thin stateful classes over them."""

from .scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from .scheduling_utils import SchedulerMixin, SchedulerOutput

__all__ = ["FlowMatchEulerDiscreteScheduler", "SchedulerMixin", "SchedulerOutput"]
