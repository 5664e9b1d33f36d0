"""Draws one prompt with several kinds of guidance, which can be combined.

python examples/guidance.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
for name, guidance in {
    "classifier_free": ppsd3.ClassifierFreeGuidance(7.0),
    "zero_star": ppsd3.ClassifierFreeZeroStarGuidance(7.0),
    "projected": ppsd3.AdaptiveProjectedGuidance(7.0, eta=0.0, momentum=-0.5),
    "interval": ppsd3.GuidanceInterval(7.0, start=0.0, stop=0.6),  # the other steps take half the time
    "rescaled_perturbed": ppsd3.GuidanceRescale(ppsd3.PerturbedAttentionGuidance(5.0, layers=[2]), factor=0.5),
}.items():
    image = pipe(
        "a red circle to the left of a blue square",
        guidance=guidance,
        generator=ppsd3.TorchGenerator(0),
    ).images[0]
    image.save(f"guidance_{name}.png")
