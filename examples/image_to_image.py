"""A picture is drawn anew: from one that a prompt made, and on towards another prompt.

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
    strength=0.8,  # of the way back to noise: less keeps more of the picture
    generator=ppsd3.TorchGenerator(0),
).images[0]
image.save("image_to_image.png")
