"""Captions scenes: chooses what to state (a `Statement`, always true and naming every object), then how to word it."""

from typing import Optional

import numpy as np

from .scene import OPPOSITE, Group, Scene, Statement, relation_between

# Chance that a caption says the colours, the sizes, the background, for each kind of scene.
_SAYS = {
    "single_object": (0.25, 0.6, 0.6),
    "two_object": (0.3, 0.2, 0.6),
    "counting": (0.9, 0.25, 0.3),
    "colors": (1.0, 0.25, 0.3),
    "position": (0.92, 0.15, 0.2),
    "color_attr": (1.0, 0.2, 0.25),
    "free": (0.95, 0.3, 0.3),
}

PREFIXES = ("a picture of", "an image of", "a drawing of", "a photo of")
NUMBERS = {1: ("one",), 2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLACE_WORDS = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
JOINERS = ("and", "with")


def state(scene: Scene, rng: np.random.Generator) -> Statement:
    """Chooses what to state of a scene: every object, in reading order or in a relation, and some attributes."""
    say_color, say_size, say_background = rng.random(3) < _SAYS[scene.task]
    objects = list(scene.objects)
    if len(objects) > 2:  # keeps the captions of crowded scenes short
        say_size = say_size and scene.task == "counting"
        say_background = (say_background and len(objects) < 4) or scene.task == "counting"
    if scene.task == "position":
        rng.shuffle(objects)
    else:  # otherwise nothing in a caption would say which of two objects stands where, and the model would blend them
        objects.sort(key=_reading_order)
    relation = relation_between(*objects) if scene.task == "position" else None
    if relation is not None and not say_color:
        say_color = objects[0].shape == objects[1].shape  # else "a circle left of a circle"
    names = [(o.shape, o.color if say_color else None, o.size if say_size else None) for o in objects]
    groups = tuple(Group(*name, count=names.count(name)) for name in dict.fromkeys(names))
    return Statement(groups, relation, scene.background if say_background else None)


def _reading_order(o):
    """Upper, middle, lower row; from left to right."""
    return (o.y > 0.375) + (o.y > 0.625), o.x


def phrase(statement: Statement, rng: Optional[np.random.Generator] = None) -> str:
    """Words a statement: in the same plain way without ``rng``, else in one of many ways."""
    wording = _Wording(rng)
    names = [wording.name(group) for group in statement.groups]
    text = wording.relate(names, statement.relation) if statement.relation else wording.join(names)
    return wording.frame(text, statement.background)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption of the scene: true, naming every object, lower case, at most 20 words."""
    return phrase(state(scene, rng), rng)


class _Wording:
    """Choices among equivalent words; without a generator always the first."""

    def __init__(self, rng: Optional[np.random.Generator]):
        self.rng = rng
        self.articles = not self.happens(0.1)

    def happens(self, chance: float) -> bool:
        return self.rng is not None and self.rng.random() < chance

    def pick(self, words, usual=0.6):
        """The first word with chance ``usual``, else any of the others."""
        if self.rng is None or len(words) == 1 or not self.happens(1 - usual):
            return words[0]
        return words[1 + self.rng.integers(len(words) - 1)]

    def name(self, group: Group) -> str:
        words = [] if group.size is None else [self.pick(SIZE_WORDS[group.size], 0.75)]
        words += [] if group.color is None else [group.color]
        if group.count > 1:
            plural = "crosses" if group.shape == "cross" else group.shape + "s"
            return " ".join([self.pick(NUMBERS[group.count], 0.85)] + words + [plural])
        words.append(group.shape)
        if self.happens(0.05):
            words.insert(0, "one")
        elif self.articles:
            words.insert(0, _article(words[0]))
        return " ".join(words)

    def join(self, names) -> str:
        if len(names) == 1:
            return names[0]
        if len(names) == 2:
            return f"{names[0]} {self.pick(JOINERS, 0.85)} {names[1]}"
        return ", ".join(names[:-1]) + " and " + names[-1]

    def relate(self, names, relation) -> str:
        if self.happens(0.12):
            return f"{names[0]} {PLACE_WORDS[relation]} and {names[1]} {PLACE_WORDS[OPPOSITE[relation]]}"
        return f"{names[0]} {self.pick(RELATION_WORDS[relation])} {names[1]}"

    def frame(self, text, background) -> str:
        if background is not None:
            color = "gray" if background == "grey" and self.happens(0.25) else background
            text += f" on {color}" if self.happens(0.15) else f" on a {color} background"
        elif self.happens(0.25):
            text = f"{self.pick(PREFIXES, 0.4)} {text}"
        return text


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
