"""Seconds of a step of diffusers' SD3 transformer with random weights. Run by file name, not imported:

python torch_step.py '{"config": {...}, "dtype": "bfloat16", "size": 512, "device": "cuda:0", ...}'
"""

# torch and diffusers may be absent, and their annotations do not fit their own use.
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import sys
import time


def main(task: str) -> None:
    """Prints the seconds; ``task`` is JSON."""
    import diffusers
    import torch

    given = json.loads(task)
    config, dtype, device = given["config"], getattr(torch, given["dtype"]), given["device"]
    with torch.device(device):
        network = diffusers.SD3Transformer2DModel(**config).to(dtype).eval()
        latents = torch.randn(2, config["in_channels"], given["size"] // 8, given["size"] // 8, dtype=dtype)
        texts = torch.randn(2, given["text_tokens"], config["joint_attention_dim"], dtype=dtype)
        pooled = torch.randn(2, config["pooled_projection_dim"], dtype=dtype)
        timesteps = torch.full((2,), 500.0)
    if given["compiled"]:
        network = torch.compile(network)

    def wait():
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    start = 0.0
    with torch.no_grad():
        for i in range(given["warm_up"] + given["timed"]):
            if i == given["warm_up"]:
                wait()
                start = time.perf_counter()
            network(latents, encoder_hidden_states=texts, pooled_projections=pooled, timestep=timesteps)
        wait()
    print((time.perf_counter() - start) / given["timed"])


if __name__ == "__main__":
    main(sys.argv[1])
