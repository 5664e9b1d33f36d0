"""The time of a picture, with a scheduler of choice."""

import argparse
import time

import numpy as np
import paddle
from ppdiffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from tqdm.auto import trange

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("output")
parser.add_argument("--scheduler", default="flow")
args = parser.parse_args()

pipe = StableDiffusion3Pipeline.from_pretrained(
    args.model,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
    paddle_dtype=paddle.float32,
)
pipe.original_scheduler_config = pipe.scheduler.config
if args.scheduler == "flow":
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.original_scheduler_config, skip_prk_steps=True)
elif args.scheduler == "dpm-multi":
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.original_scheduler_config)
elif args.scheduler == "unipc-multi":
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.original_scheduler_config)
pipe.set_progress_bar_config(disable=False)

pipe("a blue square", num_inference_steps=2, height=64, width=64)
times = []
for _ in trange(2):
    start = time.time()
    paddle.seed(1024)
    images = pipe("a blue square", num_inference_steps=8, guidance_scale=4.5, height=64, width=64).images
    times.append(time.time() - start)
print(f"{np.mean(times):.3f} s")
images[0].save(args.output)
