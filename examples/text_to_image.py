"""A prompt becomes a picture, with the bundled model or any Stable Diffusion 3 / 3.5 checkpoint in diffusers format.

python examples/text_to_image.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
image = pipe(
    "a red circle to the left of a blue square",
    num_inference_steps=28,
    guidance_scale=7.0,
    generator=ppsd3.TorchGenerator(0),  # the picture that diffusers draws with torch.Generator("cpu").manual_seed(0)
).images[0]
image.save("text_to_image.png")
