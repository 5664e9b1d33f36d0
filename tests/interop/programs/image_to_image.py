"""A picture made from a sketch and a text."""

import sys

import numpy as np
import paddle
from PIL import Image
from ppdiffusers import StableDiffusion3Img2ImgPipeline
from ppdiffusers.utils import load_image

model, output = sys.argv[1:]
sketch = np.full([96, 96, 3], 230, np.uint8)
sketch[20:70, 10:50] = 200, 30, 40
Image.fromarray(sketch).save("sketch.png")

pipe = StableDiffusion3Img2ImgPipeline.from_pretrained(model, paddle_dtype=paddle.float32)
init_image = load_image("sketch.png").resize((64, 64))
paddle.seed(7)
image = pipe(prompt="a red square above a green circle", image=init_image, strength=0.95, guidance_scale=7.5).images[0]
image.save(output)
