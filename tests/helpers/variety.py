"""Every guidance, sampler and step cache, for tests of what has to hold with each. Tasks: ``helpers.concerns``."""

from functools import partial

import ppsd3
from ppsd3.pipelines.stable_diffusion_3 import guidance

GUIDANCES = {
    "none": guidance.NoGuidance,
    "classifier-free": lambda: guidance.ClassifierFreeGuidance(5.0),
    "zero star": lambda: guidance.ClassifierFreeZeroStarGuidance(5.0),
    "projected": lambda: guidance.AdaptiveProjectedGuidance(5.0, momentum=-0.5),
    "rescaled": lambda: guidance.GuidanceRescale(5.0),
    "in an interval": lambda: guidance.GuidanceInterval(5.0, 0.2, 0.8),
    "skipped layers": lambda: guidance.SkipLayerGuidance(5.0, [1], stop=0.9),
    "perturbed attention": lambda: guidance.PerturbedAttentionGuidance(5.0, layers=[1]),
    "less and less perturbed": lambda: guidance.PerturbedAttentionGuidance(5.0, layers=[1], pag_adaptive_scale=0.001),
}

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

# name -> (configuration of another sampler) -> sampler
SAMPLERS = {
    "Euler": ppsd3.FlowMatchEulerDiscreteScheduler.from_config,
    "stochastic Euler": partial(ppsd3.FlowMatchEulerDiscreteScheduler.from_config, stochastic_sampling=True),
    "Heun": ppsd3.FlowMatchHeunDiscreteScheduler.from_config,
    "LCM": ppsd3.FlowMatchLCMScheduler.from_config,
    "DPM-Solver": partial(ppsd3.DPMSolverMultistepScheduler.from_config, **_FLOW),
    "stochastic DPM-Solver": partial(
        ppsd3.DPMSolverMultistepScheduler.from_config, algorithm_type="sde-dpmsolver++", **_FLOW
    ),
    "UniPC": partial(ppsd3.UniPCMultistepScheduler.from_config, **_FLOW),
}

CACHES = (ppsd3.TaylorCache, ppsd3.EasyCache, ppsd3.FirstBlockCache)
