"""A small procedural world of captioned pictures, which the bundled model draws, and the judge that reads them.

`world` makes scenes, captions and pictures; `held_out` says which combinations training never shows; `prompts`
asks for them in GenEval's six tasks; `judge` reads pictures and scores them.
"""

from .judge import meets, read_picture, score
from .prompts import Requirement, evaluation_prompts
from .scene import TASKS
from .sheet import contact_sheet
from .world import Object, Scene, caption, is_held_out, render, render_batch, sample_scene

__all__ = [
    "TASKS",
    "Object",
    "Requirement",
    "Scene",
    "caption",
    "contact_sheet",
    "evaluation_prompts",
    "is_held_out",
    "meets",
    "read_picture",
    "render",
    "render_batch",
    "sample_scene",
    "score",
]
