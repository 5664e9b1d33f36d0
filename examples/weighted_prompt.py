"""Weighted prompts: one seed with growing weight on one word. Previews of the steps are saved too.

python examples/weighted_prompt.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
pipe.prompt_reader = ppsd3.WeightedPrompts()  # (word:1.3), (word), [word], \( and BREAK; any length
preview = ppsd3.LatentPreview.of(pipe)
for weight in (0.0, 1.0, 2.0):
    image = pipe(
        f"a (red:{weight}) circle on a white background",
        num_inference_steps=10,
        generator=ppsd3.TorchGenerator(0),
        callback_on_step_end=preview.callback(
            lambda step, images, weight=weight: images[0].save(f"weight_{weight}_step_{step}.png"), every=5
        ),
    ).images[0]
    image.save(f"weight_{weight}.png")
