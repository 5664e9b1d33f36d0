"""A ControlNet: silhouettes say what stands where, the prompt says in which colours.

python examples/control.py
"""

from PIL import Image, ImageDraw

import ppsd3

silhouettes = Image.new("RGB", (64, 64))
draw = ImageDraw.Draw(silhouettes)
draw.ellipse((5, 6, 27, 28), fill="white")
draw.rectangle((38, 38, 56, 56), fill="white")
silhouettes.save("silhouettes.png")

net = ppsd3.SD3ControlNetModel.from_pretrained("shapes-silhouette")
pipe = ppsd3.StableDiffusion3ControlNetPipeline.from_pretrained("shapes", controlnet=net)
for name, prompt in {
    "one": "a red circle and a blue square on a white background",
    "other": "a yellow circle and a green square on a navy background",
}.items():
    image = pipe(prompt, control_image=silhouettes, generator=ppsd3.TorchGenerator(0)).images[0]
    image.save(f"control_{name}.png")
