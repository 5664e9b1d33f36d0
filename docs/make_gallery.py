"""Draws the pictures of gallery.md: runs the short examples and puts what each saves side by side.

python docs/make_gallery.py [NAME ...]
"""

import os
import pathlib
import runpy
import sys
import tempfile

from PIL import Image

DOCS = pathlib.Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
SIDE, GAP = 192, 12
# Example -> its pictures, in the order of the page.
PICTURES = {
    "image_to_image": ["before", "image_to_image"],
    "inpainting": ["before", "inpainting"],
    "control": ["silhouettes", "control_one", "control_other"],
    "samplers": ["sampler_euler", "sampler_heun", "sampler_dpm", "sampler_unipc"],
    "guidance": ["guidance_projected", "guidance_rescaled_perturbed"],
    "step_caching": ["all_steps", "TaylorCache", "FirstBlockCache", "EasyCache"],
    "lora": ["lora_0.0", "lora_1.0"],
    "textual_inversion": ["textual_inversion_before", "textual_inversion_after"],
    "weighted_prompt": ["weight_1.0_step_4", "weight_1.0_step_9", "weight_1.0"],
}


def row(paths):
    """The pictures beside one another, enlarged without smoothing."""
    canvas = Image.new("RGB", (len(paths) * (SIDE + GAP) - GAP, SIDE), "white")
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            canvas.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), (i * (SIDE + GAP), 0))
    return canvas


def main(names):
    for name in names or PICTURES:
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
            row([f"{picture}.png" for picture in PICTURES[name]]).save(DOCS / "images" / f"{name}.png", optimize=True)
            os.chdir(DOCS)


if __name__ == "__main__":
    main(sys.argv[1:])
