"""Samplers of other programs by their names, and the nearest one that samples a flow.

diffusers' classes, and the names in the web UIs and ComfyUI. Those that sample diffusion models step along betas and
expect a network that predicts noise; a flow has sigmas and predicts a velocity.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .checking import shown
from .errors import ConfigError

_LONGEST = 60  # characters of a sampler's name
_FLOW = "flow_prediction"


class _Nearest(NamedTuple):
    """Of ppsd3: the class with its settings, and the name for ``--scheduler``."""

    made: str
    option: str


_EULER = _Nearest("FlowMatchEulerDiscreteScheduler", "euler")
_HEUN = _Nearest("FlowMatchHeunDiscreteScheduler", "heun")
_LCM = _Nearest("FlowMatchLCMScheduler", "lcm")
_DPM = _Nearest("DPMSolverMultistepScheduler", "dpm")
_SDE = _Nearest("DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++')", "dpm-sde")
_UNIPC = _Nearest("UniPCMultistepScheduler", "unipc")

# Beginning of a class's name in diffusers, and names in other programs (spaces for signs, without "karras" and other
# spacings) -> the nearest here. The first that matches counts.
_SAMPLERS = (
    (("EulerAncestralDiscrete",), ("euler a", "euler ancestral", "k euler a"), _SDE),
    (("EulerDiscrete", "EDMEuler"), ("k euler",), _EULER),
    (("HeunDiscrete",), ("k heun",), _HEUN),
    (("KDPM2Ancestral",), ("dpm2 a", "dpm 2 ancestral", "dpm++ 2s a", "dpmpp 2s ancestral"), _SDE),
    (("KDPM2",), ("dpm2", "dpm 2"), _HEUN),
    (("DPMSolverSDE", "CosineDPMSolver"), ("dpm++ sde", "dpmpp sde"), _SDE),
    ((), ("dpm++ 2m sde", "dpm++ 3m sde", "dpmpp 2m sde", "dpmpp 3m sde", "dpm++ 2m sde heun"), _SDE),
    (("SASolver",), ("sa solver", "seeds 2", "seeds 3", "er sde"), _SDE),
    (
        ("DPMSolver", "EDMDPMSolver"),
        ("dpm++ 2m", "dpmpp 2m", "dpm++", "dpm fast", "dpm adaptive", "dpm solver", "res multistep"),
        _DPM,
    ),
    (("DEIS", "LMSDiscrete", "PNDM", "IPNDM"), ("deis", "lms", "k lms", "pndm", "plms", "ipndm", "ipndm v"), _DPM),
    (("LCM", "TCD"), ("tcd",), _LCM),
    (("UniPC",), ("uni pc", "uni pc bh2"), _UNIPC),
    (
        ("DDIM", "DDPM", "CMStochastic", "ScoreSdeVe", "KarrasVe", "UnCLIP", "RePaint", "VQDiffusion", "Amused"),
        ("ddim", "ddpm", "restart"),
        _EULER,
    ),
)
_SPACINGS = re.compile(r" (karras|exponential|polyexponential|beta|simple|normal|sgm uniform|ays|gpu|automatic)$")


def refuse_diffusion(config: Mapping[str, Any], own: Collection[str]) -> None:
    """Raises ConfigError for the configuration of a sampler of diffusion models.

    Args:
        own: names of ppsd3's classes, which may be made to sample either in diffusers.
    """
    name, predicts = config.get("_class_name"), config.get("prediction_type", _FLOW)
    if predicts == _FLOW and config.get("use_flow_sigmas"):
        return
    signs = [] if predicts == _FLOW else [f"prediction_type={shown(predicts)}"]
    signs += [f"beta_schedule={shown(config['beta_schedule'])}"] if config.get("beta_schedule") else []
    named = shown(name).strip("'")
    if signs or (name not in own and explain_sampler("", name)):
        raise ConfigError(_refusal(f"The configuration{f' of a {named}' if name else ''}", str(name), signs))


def explain_sampler(owner: str, class_name: object) -> str | None:
    """Why a scheduler of diffusers is not used, and which is; None for a class that is not known."""
    if not isinstance(class_name, str) or _of_class(class_name) is None:
        return None
    return _refusal(f"{owner}, a {class_name},", class_name)


def _refusal(owner, class_name, signs=()):
    nearest = _of_class(class_name) or _EULER
    details = f" ({', '.join(signs)})" if signs else ""
    return (
        f"{owner} samples diffusion models{details}, and Stable Diffusion 3 is a flow, which has no betas and predicts "
        f"a velocity. Use {nearest.made}, with the configuration in the folder `scheduler` of a Stable Diffusion 3."
    )


def explain_option(name: str, options: Mapping[str, Any]) -> str | None:
    """What to pass in place of the sampler ``name`` of another program; None for a name that nobody uses.

    Args:
        options: the names that can be passed.
    """
    if not isinstance(name, str) or name in options or len(name) > _LONGEST:
        return None
    plain = " ".join(re.sub(r"[\s_-]+", " ", name.lower()).split())
    while _SPACINGS.search(plain):
        plain = _SPACINGS.sub("", plain)
    nearest = _of_class(name) or next((near for _, names, near in _SAMPLERS if plain in names), None)
    same = next((option for option in options if option.replace("-", " ") == plain), None)
    option = same or (nearest.option if nearest else None)
    if option is None:
        return None
    why = "" if same else ", which samples diffusion models"
    return f"{name!r} is a sampler of another program{why}; the nearest for a flow is {option!r}"


def _of_class(name: str | None) -> _Nearest | None:
    if not name or not name.endswith("Scheduler"):
        return None
    return next((near for beginnings, _, near in _SAMPLERS if name.startswith(beginnings)), None)
