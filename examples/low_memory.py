"""Low memory: loads each network when it is used and frees it afterwards; encodes prompts once.

python examples/low_memory.py
"""

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained(
    "shapes",
    load_components="on_demand",
    storage_dtype="float16",  # weights stay in 16 bits, and are cast when a layer is used
)
pipe.enable_vae_tiling()
pipe.enable_prompt_cache(ppsd3.PromptCache("prompts"))  # the second image does not read the text encoders
for seed in range(2):
    image = pipe("a red circle to the left of a blue square", generator=ppsd3.TorchGenerator(seed)).images[0]
    image.save(f"low_memory_{seed}.png")
