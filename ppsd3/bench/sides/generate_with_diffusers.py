"""What ``ppsd3 generate`` does, as one would write it with diffusers. Run by file name, not imported:

python generate_with_diffusers.py CHECKPOINT PROMPT STEPS SEED THREADS FILE
"""

import sys


def main(checkpoint, prompt, steps, seed, threads, file):
    import diffusers
    import torch

    torch.set_num_threads(int(threads))
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(int(seed))
    pipe(prompt, num_inference_steps=int(steps), generator=generator).images[0].save(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
