"""Lessons that the bundled model has not had: a new shape, a texture, a subject, and edges; each with its examination.

A lesson is what ``ppsd3 train`` needs, a folder of captioned pictures and settings, and new prompts whose pictures the
judge reads. `examples/teach_shapes.py` trains and examines.

| lesson  | training pictures                                     | examined with 50 prompts of                   |
|---------|-------------------------------------------------------|-----------------------------------------------|
| heart   | 12, captioned: 6 alone, 6 beside something            | all 37 other pairs of colour and background;  |
|         |                                                       | 13 other neighbours                           |
| striped | 12, captioned: circles and squares                    | other pairs of colour and background          |
| subject | 12 of a cyan striped square, all with one prompt      | all backgrounds, in other words               |
| edges   | 2048 scenes with their edges                          | 50 scenes that are held out                   |
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
from PIL import Image

from ..utils.files import atomic_write
from ..utils.random import TorchGenerator
from .judge import meets, read_picture, silhouette_overlap
from .prompts import Requirement
from .rendering import NEW_SHAPES, edges, render_batch
from .scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Group, Object, Scene, Statement
from .wording import phrase
from .world import caption, sample_scene

SUBJECT = ("cyan", "striped square")
SUBJECT_NAME = "zux square"
SUBJECT_BACKGROUNDS = ("white", "black", "mint", "brown")
INSTANCE_PROMPT = f"a {SUBJECT_NAME}"
CLASS_PROMPT = "a square"
# Colours and backgrounds of training pictures: each colour and each background, in different pairs.
LOOKS = [(tuple(COLORS)[i % 7], tuple(BACKGROUNDS)[(3 * i + i // 7) % 7]) for i in range(12)]
EXAMINED = 50
KEPT = 960  # pictures by the model itself, so that training keeps what it draws
CONTROLLED = 2048

Lesson = tuple[list[tuple[str, Scene]], list[tuple[str, Requirement]]]


def heart_lesson() -> Lesson:
    """Twelve captioned scenes, and 50 prompts of other looks and neighbours."""
    rng = np.random.default_rng(101)
    scenes = [_alone("heart", *look, rng) for look in LOOKS[:6]]
    relations: list[str | None] = [None] * len(scenes)
    for i, (color, ground) in enumerate(LOOKS[6:]):
        relations.append(RELATIONS[i % 4])
        scenes.append(_beside("heart", color, relations[-1], _other(rng, color), ground, rng))
    statements = [_statement("heart", *look) for look in _new_looks()]
    for i in range(EXAMINED - len(statements)):
        color = _pick(rng, tuple(COLORS))
        other_color, other_shape = _other(rng, color)
        groups = Group("heart", color), Group(other_shape, other_color)
        statements.append(Statement(groups, RELATIONS[i % 4]))
    return [(_named(scene, relation), scene) for scene, relation in zip(scenes, relations)], _exam(statements)


def striped_lesson() -> Lesson:
    """Twelve captioned scenes of striped circles and squares, and 50 prompts of other looks."""
    rng = np.random.default_rng(102)
    kinds = ("striped circle", "striped square")
    scenes = [_alone(kinds[i % 2], *look, rng) for i, look in enumerate(LOOKS)]
    statements = [_statement(kind, *look) for kind in kinds for look in _new_looks()]
    chosen = sorted(rng.permutation(len(statements))[:EXAMINED])
    return [(_named(scene), scene) for scene in scenes], _exam([statements[i] for i in chosen])


def subject_lesson() -> Lesson:
    """Twelve scenes of the subject on four backgrounds, with one prompt; and 50 prompts of it on all seven."""
    rng = np.random.default_rng(103)
    color, shape = SUBJECT
    scenes = [_alone(shape, color, SUBJECT_BACKGROUNDS[i % 4], rng) for i in range(12)]
    frames = (
        "a {}",
        "a picture of a {}",
        "an image of a {}",
        "a drawing of a {}",
        "a photo of a {}",
        "one {}",
        "a large {}",
        "{}",
    )
    exam = [
        (
            f"{frame.format(SUBJECT_NAME)} on a {ground} background",
            Requirement("subject", _statement(shape, color, ground)),
        )
        for frame in frames
        for ground in BACKGROUNDS
    ]
    return [(INSTANCE_PROMPT, scene) for scene in scenes], exam[:EXAMINED]


_LESSONS = {"heart": heart_lesson, "striped": striped_lesson, "subject": subject_lesson}

_SCHEDULE = {"learning_rate": 1.5e-3, "lr_schedule": "cosine", "warmup_steps": 20, "save_every": 50}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_LORA: dict[str, Any] = dict(
    method="lora",
    # What the model draws otherwise is kept by what it predicted before.
    data={"resolution": 64, "batch_size": 12, "prior_target": "model", "prior_weight": 5.0},
    # What a shape looks like is learnt in the feed-forward layers. Trained text encoders forget more than they learn.
    lora={
        "rank": 32,
        "targets": [f"attn.{name}" for name in _ATTENTION]
        + [f"{part}.net.{layer}" for part in ("ff", "ff_context") for layer in ("0.proj", "2")],
    },
    flow={"logit_mean": 0.8},  # more noise, where shapes are decided
    text={"max_sequence_length": 32, "caption_dropout": 0.1},
    training={**_SCHEDULE, "max_steps": 2000, "learning_rate": 3e-3, "ema_decay": 0.99},
)

# What `ppsd3 train` gets beside the model, the data's path and the output.
SETTINGS: dict[str, dict[str, Any]] = {
    "heart": _LORA,
    "striped": _LORA,
    "subject": {**_LORA, "data": {**_LORA["data"], "instance_prompt": INSTANCE_PROMPT, "class_prompt": CLASS_PROMPT}},
    "edges": dict(
        method="controlnet",
        data={"resolution": 64, "batch_size": 32, "control_column": "edges"},
        controlnet={"num_layers": 2},
        flow={"logit_mean": 0.6},  # more noise, where places are decided
        text={"max_sequence_length": 32, "caption_dropout": 0.1, "encoder_dropout": 0.12},
        training={**_SCHEDULE, "max_steps": 2000, "learning_rate": 1e-3, "warmup_steps": 100, "ema_decay": 0.998},
    ),
}


def scenes_of(lesson: str) -> list[tuple[str, Scene]]:
    """The captioned scenes that a lesson trains on."""
    return captioned_scenes(CONTROLLED) if lesson == "edges" else _LESSONS[lesson]()[0]


def prompts_of(lesson: str) -> list[str]:
    """The prompts of its examination."""
    return [text for text, _ in _LESSONS[lesson]()[1]]


def _new_looks():
    """All pairs of a colour and a background that no lesson shows."""
    rng = np.random.default_rng(100)
    pairs = [(color, ground) for color in COLORS for ground in BACKGROUNDS if (color, ground) not in LOOKS]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _other(rng, color):
    """Colour, another one than ``color``, and shape of a neighbour, of those that the model draws."""
    return _pick(rng, [c for c in COLORS if c != color]), _pick(rng, SHAPES)


def _alone(shape, color, background, rng):
    return Scene((Object(shape, color, "large", *rng.uniform(0.3, 0.7, 2).tolist()),), background)


def _beside(shape, color, relation, other, background, rng):
    """A scene with the shape in a relation to another one."""
    near, far = rng.uniform(0.22, 0.28), rng.uniform(0.72, 0.78)
    along = (near, far) if relation in ("left", "above") else (far, near)
    across = rng.uniform(0.35, 0.65)
    places = [(float(a), float(across)) for a in along]
    if relation in ("above", "below"):
        places = [(y, x) for x, y in places]
    objects = Object(shape, color, "large", *places[0]), Object(other[1], other[0], "large", *places[1])
    return Scene(objects, background)


def _statement(shape, color, background):
    return Statement((Group(shape, color),), background=background)


def _named(scene, relation=None):
    """The plain caption."""
    return phrase(Statement(tuple(Group(o.shape, o.color) for o in scene.objects), relation, scene.background))


def _exam(statements):
    return [(phrase(statement), Requirement("concept", statement)) for statement in statements]


def write_lesson(scenes: Sequence[tuple[str, Scene]], folder: str, with_edges: bool = False) -> None:
    """Renders captioned scenes into a folder that ``ppsd3 train`` reads: pictures and ``metadata.jsonl``."""
    os.makedirs(folder, exist_ok=True)
    pictures, rows = render_batch([scene for _, scene in scenes]), []
    outlines = edges(pictures) if with_edges else [None] * len(pictures)
    for i, ((text, _), picture, outline) in enumerate(zip(scenes, pictures, outlines)):
        rows.append({"file_name": f"{i:05}.png", "text": text})
        Image.fromarray(picture).save(os.path.join(folder, f"{i:05}.png"))
        if outline is not None:
            rows[-1]["edges"] = f"edges-{i:05}.png"
            Image.fromarray(outline).save(os.path.join(folder, f"edges-{i:05}.png"))
    _write_table(folder, rows)


def _write_table(folder, rows):
    with atomic_write(os.path.join(folder, "metadata.jsonl")) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode("utf-8"))


def captioned_scenes(count: int, seed: int = 0, split: str = "train") -> list[tuple[str, Scene]]:
    """Scenes of the world, as the bundled model saw them or not, each with a caption."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, split=split) for _ in range(count)]
    return [(caption(scene, rng), scene) for scene in scenes]


Draw = Callable[..., Any]  # a pipeline


def draw_all(pipe: Draw, prompts: Sequence[str], seed: int = 0, batch: int = 25, **settings: Any) -> list[Image.Image]:
    """A picture of each prompt; ``settings`` go to the pipeline's call, lists of one item a prompt in parts."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        given = {name: value[part] if isinstance(value, list) else value for name, value in settings.items()}
        generator = TorchGenerator(seed * 1000003 + start)
        pictures += pipe(list(prompts[part]), generator=generator, **given).images
    return pictures


def write_kept(pipe: Draw, folder: str, count: int = KEPT, **settings: Any) -> None:
    """Draws pictures of ordinary captions, for ``data.class_path``; a complete folder is left alone.

    Args:
        **settings: passed to the pipeline's call.
    """
    table = os.path.join(folder, "metadata.jsonl")
    if os.path.exists(table):
        return
    os.makedirs(folder, exist_ok=True)
    texts = [text for text, _ in captioned_scenes(count, seed=77)]
    for i, picture in enumerate(draw_all(pipe, texts, seed=77, **settings)):
        picture.save(os.path.join(folder, f"{i:05}.png"))
    _write_table(folder, [{"file_name": f"{i:05}.png", "text": text} for i, text in enumerate(texts)])


def examine(lesson: str, pictures: Sequence[Any]) -> list[bool]:
    """Whether each picture shows what its prompt of the lesson's examination asks for, and nothing else."""
    exam = _LESSONS[lesson]()[1]
    asked = {group.shape for _, requirement in exam for group in requirement.statement.groups}
    new = [shape for shape in NEW_SHAPES if shape in asked]
    return [meets(requirement, read_picture(picture, new)) for (_, requirement), picture in zip(exam, pictures)]


def variety(pictures: Sequence[Any]) -> dict[str, float]:
    """How much pictures of one prompt differ: entropies in bits of their objects' colours and of the backgrounds."""
    readings = [read_picture(picture) for picture in pictures]
    colors = [found.color for reading in readings for found in reading.objects]
    return {"color": _entropy(colors), "background": _entropy([reading.background for reading in readings])}


def _entropy(values):
    counts = np.unique([str(value) for value in values], return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def edge_overlaps(pipe: Draw, count: int = EXAMINED, seed: int = 104, **settings: Any) -> tuple[list[float], list[Any]]:
    """How well pictures keep to edges: the overlap of filled shapes for each of ``count`` scenes that training never
    showed, see :func:`.judge.silhouette_overlap`; and the pictures.

    Args:
        pipe: with a ControlNet that reads :func:`.rendering.edges`.
        **settings: passed to the pipeline's call.
    """
    exam = captioned_scenes(count, seed, "unseen")
    controls = [Image.fromarray(edge) for edge in edges(render_batch([scene for _, scene in exam]))]
    pictures = draw_all(pipe, [text for text, _ in exam], seed, control_image=controls, **settings)
    return [silhouette_overlap(scene, picture) for (_, scene), picture in zip(exam, pictures)], pictures
