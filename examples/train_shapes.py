"""Trains the bundled model `shapes` from scratch: autoencoder, text encoders, transformer; then packs it.

    python examples/train_shapes.py --output runs/shapes            # all stages; run it again to resume
    python examples/train_shapes.py --output runs/shapes --stage transformer
    python examples/train_shapes.py --output runs/shapes --stage controlnet  # reads silhouettes: shapes-silhouette

Every stage writes its state to OUTPUT/<stage>/checkpoints every few minutes, and losses to log.jsonl. The packed
model, in half precision and in diffusers format, is OUTPUT/shapes; the package ships it as ppsd3/shapes/checkpoint.
"""

import argparse

from ppsd3.shapes import recipe

STAGES = ("vae", "text", "latents", "transformer", "pack")
APART = ("controlnet",)  # for the model that the package ships, whatever the other stages made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/shapes", help="directory of states, logs and the packed model")
    parser.add_argument(
        "--stage", choices=(*STAGES, *APART), action="append", help="run only this stage (may be repeated)"
    )
    parser.add_argument("--steps", type=int, help="stop the stage early, after this many steps in all (for a trial)")
    arguments = parser.parse_args()
    for stage in arguments.stage or STAGES:
        getattr(recipe, f"run_{stage}")(arguments.output, arguments.steps)


if __name__ == "__main__":
    main()
