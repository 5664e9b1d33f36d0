"""Inpainting: redraws a part of an image and keeps the rest.

python examples/inpainting.py
"""

from PIL import Image, ImageDraw

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
first = pipe(
    "a red circle to the left of a blue square on a pink background", generator=ppsd3.TorchGenerator(0)
).images[0]
first.save("before.png")
mask = Image.new("L", first.size)
ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)  # white is redrawn

inpaint = ppsd3.StableDiffusion3InpaintPipeline.from_pipe(pipe)
image = inpaint(
    "a red circle to the left of a green square on a pink background",
    image=first,
    mask_image=mask,
    height=64,
    width=64,
    strength=1.0,
    generator=ppsd3.TorchGenerator(1),
).images[0]
image.save("inpainting.png")
