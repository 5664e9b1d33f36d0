"""What ``ppsd3 generate`` does, as one would write it with diffusers. Run by file name, not imported:

python generate_with_diffusers.py CHECKPOINT PROMPT STEPS SEED THREADS FILE
"""

# The rivals' libraries may be absent, and their annotations do not fit their own use.
# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import sys


def main(checkpoint: str, prompt: str, steps: str, seed: str, threads: str, file: str) -> None:
    import diffusers
    import torch

    torch.set_num_threads(int(threads))
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(int(seed))
    pipe(prompt, num_inference_steps=int(steps), generator=generator).images[0].save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
