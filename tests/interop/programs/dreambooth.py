"""A picture by a transformer that was trained further and saved by itself."""

import os
import sys

import paddle
from ppdiffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

model, output = sys.argv[1:]
pipe = StableDiffusion3Pipeline.from_pretrained(model, paddle_dtype=paddle.float32)
pipe.transformer = SD3Transformer2DModel.from_pretrained(os.path.join(model, "transformer"))
pipe.vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
paddle.seed(3)
image = pipe("two green squares", num_inference_steps=8, guidance_scale=4.5).images[0]
image.save(output)
