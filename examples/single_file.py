"""Single file: converts a diffusers checkpoint to the layout of Stability AI and ComfyUI, and draws with it.

python examples/single_file.py
"""

import ppsd3

ppsd3.convert("shapes", "shapes.safetensors")
pipe = ppsd3.StableDiffusion3Pipeline.from_single_file(
    "shapes.safetensors",
    config="shapes",  # has the tokenizers; a published file needs T5's only: tokenizer_3="path/to/t5"
)
image = pipe(
    "a red circle to the left of a blue square",
    num_inference_steps=10,
    generator=ppsd3.TorchGenerator(0),
).images[0]
image.save("single_file.png")
