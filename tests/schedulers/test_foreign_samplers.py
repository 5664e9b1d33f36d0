"""Samplers that a flow cannot use: refused by name at every door, with the nearest one that works here."""

import json
import shutil

import pytest

import ppsd3
from ppsd3.cli.main import main
from ppsd3.cli.options import SCHEDULERS
from ppsd3.utils.errors import ConfigError
from ppsd3.utils.samplers import explain_option

OWN = (
    ppsd3.FlowMatchEulerDiscreteScheduler, ppsd3.FlowMatchHeunDiscreteScheduler, ppsd3.FlowMatchLCMScheduler,
    ppsd3.DPMSolverMultistepScheduler, ppsd3.UniPCMultistepScheduler,
)  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FOREIGN = {
    "DDIMScheduler": "FlowMatchEulerDiscreteScheduler", "DDPMScheduler": "FlowMatchEulerDiscreteScheduler",
    "PNDMScheduler": "DPMSolverMultistepScheduler", "LMSDiscreteScheduler": "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler": "FlowMatchEulerDiscreteScheduler", "EulerAncestralDiscreteScheduler": "sde-dpmsolver",
    "HeunDiscreteScheduler": "FlowMatchHeunDiscreteScheduler", "DPMSolverSDEScheduler": "sde-dpmsolver",
    "KDPM2DiscreteScheduler": "FlowMatchHeunDiscreteScheduler", "LCMScheduler": "FlowMatchLCMScheduler",
    "DEISMultistepScheduler": "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler": "DPMSolverMultistep",
}  # fmt: skip


def config_of(name, **more):
    return {"_class_name": name, "_diffusers_version": "0.42.1", "prediction_type": "epsilon", **BETAS, **more}


@pytest.mark.parametrize("class_", OWN)
@pytest.mark.parametrize("name", FOREIGN)
def test_configurations_of_other_samplers(tmp_path, class_, name):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config_of(name)))
    for load in (lambda: class_.from_config(config_of(name)), lambda: class_.from_pretrained(tmp_path)):
        with pytest.raises(ConfigError, match=rf"{name}.*epsilon.*is a flow.*Use .*{FOREIGN[name]}"):
            load()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_one_class_for_diffusion_and_for_flows(name):
    """As diffusers saves them: with betas in either case, used only where use_flow_sigmas says so."""
    for class_ in OWN:
        with pytest.raises(ConfigError, match=rf"{name}.*prediction_type='epsilon', beta_schedule.*Use {name}"):
            class_.from_config(config_of(name, use_flow_sigmas=False))
    flow = config_of(name, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    for class_ in OWN[3:]:
        assert class_.from_config(flow).config.flow_shift == 3.0
    assert OWN[4].from_config(config_of(name), prediction_type="flow_prediction", use_flow_sigmas=True)


def test_betas_without_a_class():
    with pytest.raises(ConfigError, match=r"beta_schedule='scaled_linear'.*FlowMatchEulerDiscreteScheduler"):
        ppsd3.FlowMatchEulerDiscreteScheduler.from_config(BETAS)


def test_a_pipeline_with_another_sampler(tiny_checkpoint, tmp_path):
    directory = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)
    index = json.loads((directory / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (directory / "model_index.json").write_text(json.dumps(index))
    for class_ in (ppsd3.StableDiffusion3Pipeline, ppsd3.DiffusionPipeline):
        with pytest.raises(ConfigError, match=r"'scheduler'.*PNDMScheduler.*is a flow.*pass `scheduler=`"):
            class_.from_pretrained(directory)


@pytest.mark.parametrize(
    "name, option",
    [
        ("DDIM", "euler"),
        ("Euler a", "dpm-sde"),
        ("DPM++ 2M Karras", "dpm"),
        ("DPM++ SDE Karras", "dpm-sde"),
        ("dpmpp_2m_sde_gpu", "dpm-sde"),
        ("LMS Karras", "dpm"),
        ("uni_pc", "unipc"),
        ("UniPC", "unipc"),
        ("Heun", "heun"),
        ("PLMS", "dpm"),
        ("EulerAncestralDiscreteScheduler", "dpm-sde"),
    ],
)
def test_names_of_other_programs(name, option, capsys):
    assert explain_option(name, SCHEDULERS).endswith(f"is {option!r}") and option in SCHEDULERS
    with pytest.raises(SystemExit) as caught:
        main(["generate", "a cat", "--scheduler", name])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert f"--scheduler: {name!r}" in message and f"is {option!r}" in message


@pytest.mark.parametrize("name", [*SCHEDULERS, "", "nothing", "x" * 10**6, " karras" * 10**5, "_-" * 10**6])
def test_names_that_need_no_explanation(name):
    assert explain_option(name, SCHEDULERS) is None
