"""Samplers: the same noise with four schedulers, each with the number of steps that it needs.

python examples/samplers.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
model = pipe.scheduler.config  # each scheduler takes the settings that it knows, the shift included
for name, scheduler, steps in (
    ("euler", ppsd3.FlowMatchEulerDiscreteScheduler.from_config(model), 28),
    ("heun", ppsd3.FlowMatchHeunDiscreteScheduler.from_config(model), 14),  # two model calls per step
    ("dpm", ppsd3.DPMSolverMultistepScheduler.from_config(model, flow_shift=5.0), 12),
    ("unipc", ppsd3.UniPCMultistepScheduler.from_config(model, flow_shift=3.0), 12),
):
    pipe.scheduler = scheduler
    image = pipe(
        "a red circle to the left of a blue square",
        num_inference_steps=steps,
        generator=ppsd3.TorchGenerator(0),
    ).images[0]
    image.save(f"sampler_{name}.png")
