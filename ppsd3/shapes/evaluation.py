"""How well a pipeline draws the shapes world: GenEval's six tasks, on prompts that training never showed."""

import dataclasses

from .judge import meets, read_picture
from .prompts import evaluation_prompts
from .scene import TASKS


@dataclasses.dataclass
class Evaluation:
    """Shares of right pictures, 0 to 1, by task; ``overall`` is the mean over tasks, as in GenEval."""

    scores: dict[str, float]
    pictures_per_task: int

    @property
    def overall(self):
        return sum(self.scores.values()) / len(self.scores)

    def table(self):
        """The scores as aligned text, one task a line."""
        rows = [*self.scores.items(), ("overall", self.overall)]
        return "\n".join(f"{name:<16} {score:6.3f}" for name, score in rows)


def evaluate(pipe, per_task=50, seed=0, batch=25, on_picture=None, **settings):
    """Draws ``per_task`` unseen prompts of each task and judges the pictures.

    Args:
        pipe (StableDiffusion3Pipeline): what draws.
        per_task (int): prompts of each of the six tasks; at most 75, since some tasks have no more.
        seed (int): of the prompts and, with the index of a batch, of the noise.
        batch (int): pictures drawn at once.
        on_picture (callable, optional): ``on_picture(task, prompt, picture, right)`` after each.
        **settings: passed to the pipeline's call, e.g. ``num_inference_steps``.

    Returns:
        Evaluation
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
