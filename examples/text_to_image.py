"""Text to image with the bundled model; any Stable Diffusion 3 or 3.5 checkpoint in diffusers format works the same.

python examples/text_to_image.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
image = pipe(
    "a red circle to the left of a blue square",
    num_inference_steps=28,
    guidance_scale=7.0,
    generator=ppsd3.TorchGenerator(0),  # as torch.Generator("cpu").manual_seed(0) in diffusers
).images[0]
image.save("text_to_image.png")
