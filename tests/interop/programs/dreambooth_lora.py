"""A picture with a LoRA."""

import sys

import paddle
from ppdiffusers import StableDiffusion3Pipeline

model, output, lora = sys.argv[1:]
pipe = StableDiffusion3Pipeline.from_pretrained(model, paddle_dtype=paddle.float32)
pipe.load_lora_weights(lora)
paddle.seed(5)
image = pipe("a blue square", num_inference_steps=8, guidance_scale=4.5).images[0]
image.save(output)
