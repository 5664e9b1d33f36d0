"""Evaluates a pipeline in the shapes world: GenEval's six tasks, with prompts that training never showed."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

from .judge import meets, read_picture
from .prompts import evaluation_prompts
from .scene import TASKS


@dataclasses.dataclass
class Evaluation:
    """Shares of correct pictures, 0 to 1, by task."""

    scores: dict[str, float]
    pictures_per_task: int

    @property
    def overall(self) -> float:
        """Mean over tasks, as in GenEval."""
        return sum(self.scores.values()) / len(self.scores)

    def table(self) -> str:
        """The scores as aligned text, one task a line."""
        rows = [*self.scores.items(), ("overall", self.overall)]
        return "\n".join(f"{name:<16} {score:6.3f}" for name, score in rows)


def evaluate(
    pipe: Callable[..., Any],
    per_task: int = 50,
    seed: int = 0,
    batch: int = 25,
    on_picture: Callable[[str, str, Any, bool], None] | None = None,
    **settings: Any,
) -> Evaluation:
    """Draws ``per_task`` unseen prompts of each task and judges the pictures.

    Args:
        per_task: prompts of each of the six tasks; at most 75, since some tasks have no more.
        seed: of the prompts and, with the index of a batch, of the noise.
        batch: pictures drawn at once.
        on_picture: ``on_picture(task, prompt, picture, right)``, called after each picture.
        **settings: passed to the pipeline's call, e.g. ``num_inference_steps``.
    """
    from ..utils.random import TorchGenerator

    scores = {}
    for number, task in enumerate(TASKS):
        prompts = evaluation_prompts(task, per_task, seed=seed)
        right = []
        for start in range(0, per_task, batch):
            chunk = prompts[start : start + batch]
            generator = TorchGenerator(seed * 1000003 + number * 1009 + start)
            pictures = pipe([text for text, _ in chunk], generator=generator, **settings).images
            for (text, requirement), picture in zip(chunk, pictures):
                right.append(meets(requirement, read_picture(picture)))
                if on_picture is not None:
                    on_picture(task, text, picture, right[-1])
        scores[task] = sum(right) / len(right)
    return Evaluation(scores, per_task)
