"""A picture of a text, from a seed."""

import argparse

import paddle
from ppdiffusers import StableDiffusion3Pipeline

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("output")
parser.add_argument("--height", type=int, default=64)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--num-inference-steps", type=int, default=8)
args = parser.parse_args()

pipe = StableDiffusion3Pipeline.from_pretrained(args.model, paddle_dtype=paddle.float32)
generator = paddle.Generator().manual_seed(42)
image = pipe(
    "a red circle to the left of a blue square",
    num_inference_steps=args.num_inference_steps,
    width=args.width,
    height=args.height,
    guidance_scale=4.5,
    generator=generator,
).images[0]
image.save(args.output)
