"""Step caches: fewer evaluations of the transformer for nearly the same image.

python examples/step_caching.py
"""

import numpy as np

import ppsd3

pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
pictures = {}
for cache in (None, ppsd3.TaylorCache(), ppsd3.FirstBlockCache(), ppsd3.EasyCache()):
    if cache is not None:
        pipe.enable_cache(cache)
    image = pipe("a red circle to the left of a blue square", generator=ppsd3.TorchGenerator(0)).images[0]
    name = type(cache).__name__ if cache else "all_steps"
    pictures[name] = np.asarray(image, "float32") / 255
    image.save(f"{name}.png")
    if cache is not None:
        error = np.mean((pictures[name] - pictures["all_steps"]) ** 2)
        print(f"{name}: {cache.evaluations} of {cache.calls} evaluations, {10 * np.log10(1 / max(error, 1e-9)):.0f} dB")
