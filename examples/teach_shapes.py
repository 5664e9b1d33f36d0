"""Teaches the bundled model something new with `ppsd3 train`, then examines it with 50 new prompts and a judge.

    python examples/teach_shapes.py heart --output runs/heart      # a LoRA of a shape, from 12 captioned pictures
    python examples/teach_shapes.py striped --output runs/striped  # a LoRA of a texture
    python examples/teach_shapes.py subject --output runs/subject  # DreamBooth: one thing, one prompt, and its class
    python examples/teach_shapes.py edges --output runs/edges      # a ControlNet that reads edges; the longest

Minutes on two CPU cores; run it again to resume. OUTPUT has the pictures, run.yaml (`ppsd3 train OUTPUT/run.yaml` does
the same training), the result, marks.json, and sheet_after.png, the pictures of the examination. `--steps` trains less,
for a trial.
"""

import argparse
import json
import os

import yaml

import ppsd3
from ppsd3.ops import float32_matmul_precision
from ppsd3.shapes import lessons
from ppsd3.shapes.evaluation import evaluate
from ppsd3.shapes.sheet import contact_sheet
from ppsd3.training.configuration import read_configuration
from ppsd3.training.runs import TrainingRun

DRAWING = {"max_sequence_length": 32}  # what `shapes` was trained with


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", choices=tuple(lessons.SETTINGS))
    parser.add_argument("--output", required=True, help="directory of pictures, states and result")
    parser.add_argument("--steps", type=int, help="train fewer steps")
    parser.add_argument("--count", type=int, default=lessons.EXAMINED, help="prompts to examine (default: %(default)s)")
    parser.add_argument("--per-task", type=int, default=50, help="ordinary prompts of each task; 0 for none")
    arguments = parser.parse_args()
    os.makedirs(arguments.output, exist_ok=True)
    result = train(arguments.lesson, arguments.output, arguments.steps)
    marks = (examine_edges if arguments.lesson == "edges" else examine)(arguments, result)
    text = json.dumps(marks, indent=1)
    print(text)
    with open(os.path.join(arguments.output, "marks.json"), "w", encoding="utf-8") as file:
        file.write(text)


def load(kind=ppsd3.StableDiffusion3Pipeline, **components):
    pipe = kind.from_pretrained("shapes", **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(lesson, output, steps):
    """Writes what the lesson needs, trains, and returns the result's path."""
    settings = lessons.SETTINGS[lesson]
    data = {**settings["data"], "path": os.path.join(output, "data")}
    lessons.write_lesson(lessons.scenes_of(lesson), data["path"], with_edges=lesson == "edges")
    if lesson in ("heart", "striped"):
        data["class_path"] = os.path.join(output, "kept")
        lessons.write_kept(load(), data["class_path"], **DRAWING)
    configuration = {"model": "shapes", "output": output, **settings, "data": data}
    path = os.path.join(output, "run.yaml")
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(configuration, file, sort_keys=False)
    with float32_matmul_precision("medium"):  # operands in bfloat16: faster where the CPU can
        return TrainingRun(read_configuration(path)).run(steps)


def examine(arguments, result):
    """Shares of pictures that show what was learnt, without it and with it, and how other prompts fare."""
    marks = {}
    prompts = lessons.prompts_of(arguments.lesson)[: arguments.count]
    for name in ("before", "after"):
        pipe = load()
        if name == "after":
            pipe.load_lora_weights(result)
        pictures = lessons.draw_all(pipe, prompts, **DRAWING)
        right = lessons.examine(arguments.lesson, pictures)
        marks[name] = {"learnt": sum(right) / len(right)}
        if arguments.lesson == "subject":
            of_class = lessons.draw_all(pipe, [lessons.CLASS_PROMPT] * arguments.count, **DRAWING)
            marks[name]["variety"] = lessons.variety(of_class)
        if arguments.per_task:
            marks[name]["others"] = evaluate(pipe, arguments.per_task, **DRAWING).overall
        texts = [("" if yes else "WRONG: ") + text for text, yes in zip(prompts, right)]
        contact_sheet(pictures, texts, columns=10).save(os.path.join(arguments.output, f"sheet_{name}.png"))
    return marks


def examine_edges(arguments, result):
    """Intersection over union of the asked shapes and the drawn ones."""
    net = ppsd3.SD3ControlNetModel.from_pretrained(result)
    pipe = load(ppsd3.StableDiffusion3ControlNetPipeline, controlnet=net)
    overlaps, pictures = lessons.edge_overlaps(pipe, arguments.count, **DRAWING)
    texts = [f"{overlap:.2f}" for overlap in overlaps]
    contact_sheet(pictures, texts, columns=10).save(os.path.join(arguments.output, "sheet_after.png"))
    return {"overlap": sum(overlaps) / len(overlaps), "least": min(overlaps)}


if __name__ == "__main__":
    main()
