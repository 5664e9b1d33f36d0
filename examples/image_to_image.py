"""Image to image: draws an image from a prompt, then redraws it towards another prompt.

python examples/image_to_image.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
first = pipe("a large red circle", generator=ppsd3.TorchGenerator(0)).images[0]
first.save("before.png")

img2img = ppsd3.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)  # shares the networks
image = img2img(
    "a large blue circle",
    image=first,
    height=64,
    width=64,
    strength=0.8,  # the part of the steps that is done: less keeps more of the image
    generator=ppsd3.TorchGenerator(0),
).images[0]
image.save("image_to_image.png")
