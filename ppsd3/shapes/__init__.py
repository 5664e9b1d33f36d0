"""A small procedural world of captioned pictures, which the bundled model draws, and a judge that scores pictures.

`world` makes scenes, captions and pictures; `held_out` defines the combinations that training never shows; `prompts`
has prompts for them in GenEval's six tasks; `judge` detects objects in pictures and scores them.
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
