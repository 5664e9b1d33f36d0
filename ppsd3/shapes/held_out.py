"""Combinations that training never shows, for prompts that test generalization.

Training shows every single attribute (shape, colour, size, background, count, relation), but not all combinations. A
combination is held out by a fixed list or by a hash of its name, so the split never changes. The rules look at a
scene's content, not at its caption's wording. A prompt is used for evaluation only if it names a held-out combination
(`states_held_out`); then every scene that it describes is held out (`is_held_out`), and since a training caption is
true of its scene, training can never show that prompt, in any wording.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import combinations

from .scene import OPPOSITE, Scene, Statement, relation_between

HELD_OUT_PAIRS = frozenset({("purple", "ring"), ("cyan", "triangle"), ("orange", "square"), ("green", "cross")})
HELD_OUT_SHAPE_RELATIONS = frozenset({("cross", "left", "triangle"), ("ring", "above", "square")})

# Shares of each kind of combination that hashing holds out.
SINGLE_SHARE = 0.2  # (shape, size, background) of a lone object
TWO_SHAPES_SHARE = 0.12  # {shape, shape} on a background
COUNT_SHARE = 0.15  # (count, colour, shape), count of 2 to 4
PAIRS_SHARE = 0.10  # {(colour, shape), (colour, shape)}
RELATION_SHARE = 0.08  # (colour, shape) left of / above (colour, shape)


@cache
def _hashed_below(share: float, *key) -> bool:
    digest = hashlib.sha256(repr(key).encode("ascii")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def is_pair_held_out(color: str, shape: str) -> bool:
    """Whether no training scene holds an object of this colour and shape."""
    return (color, shape) in HELD_OUT_PAIRS


def is_single_held_out(shape: str, size: str, background: str) -> bool:
    """Whether training never shows this shape alone in this size on this background."""
    return _hashed_below(SINGLE_SHARE, "single", shape, size, background)


def are_shapes_held_out(shape_a: str, shape_b: str, background: str) -> bool:
    """Whether two different shapes never meet on this background in training."""
    return shape_a != shape_b and _hashed_below(TWO_SHAPES_SHARE, "shapes", *sorted((shape_a, shape_b)), background)


def is_count_held_out(count: int, color: str, shape: str) -> bool:
    """Whether no training scene holds exactly ``count`` (two or more) objects of this colour and shape."""
    return count > 1 and _hashed_below(COUNT_SHARE, "count", count, color, shape)


def are_pairs_held_out(pair_a: tuple[str, str], pair_b: tuple[str, str]) -> bool:
    """Whether two different (colour, shape) pairs never meet in a training scene."""
    return pair_a != pair_b and _hashed_below(PAIRS_SHARE, "pairs", *sorted((pair_a, pair_b)))


def is_relation_held_out(pair_a: tuple[str, str], relation: str, pair_b: tuple[str, str]) -> bool:
    """Whether training never shows ``pair_a`` in this relation to ``pair_b``; "A right of B" is "B left of A"."""
    if pair_a == pair_b:
        return False
    if are_shapes_in_relation_held_out(pair_a[1], relation, pair_b[1]):
        return True
    return _hashed_below(RELATION_SHARE, "relation", *_canonical(pair_a, relation, pair_b))


def are_shapes_in_relation_held_out(shape_a: str, relation: str, shape_b: str) -> bool:
    """Whether training never shows these shapes in this relation, in any colours."""
    return _canonical(shape_a, relation, shape_b) in HELD_OUT_SHAPE_RELATIONS


def _canonical(a, relation, b):
    """The relation as "left" rather than "right", or "above" rather than "below"."""
    return (b, OPPOSITE[relation], a) if relation in ("right", "below") else (a, relation, b)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene shows any held-out combination."""
    objects = scene.objects
    pairs = [o.pair for o in objects]
    if any(is_pair_held_out(*pair) for pair in pairs):
        return True
    if len(objects) == 1 and is_single_held_out(objects[0].shape, objects[0].size, scene.background):
        return True
    if any(is_count_held_out(pairs.count(pair), *pair) for pair in set(pairs)):
        return True
    return any(_are_two_held_out(a, b, scene.background) for a, b in combinations(objects, 2))


def _are_two_held_out(a, b, background) -> bool:
    if are_pairs_held_out(a.pair, b.pair) or are_shapes_held_out(a.shape, b.shape, background):
        return True
    relation = relation_between(a, b)
    return relation is not None and is_relation_held_out(a.pair, relation, b.pair)


def states_held_out(statement: Statement) -> bool:
    """Whether a statement names a held-out combination, whatever it leaves open."""
    groups, background = list(statement.groups), statement.background
    for g in groups:
        # A count is exact only where no other group may add objects of the same pair.
        others_differ = all(o is g or (o.color and o.color != g.color) or o.shape != g.shape for o in groups)
        if g.color and (
            is_pair_held_out(g.color, g.shape) or (others_differ and is_count_held_out(g.count, g.color, g.shape))
        ):
            return True
    lone = groups[0] if len(groups) == 1 and groups[0].count == 1 else None
    if lone and lone.size and background and is_single_held_out(lone.shape, lone.size, background):
        return True
    for a, b in combinations(groups, 2):
        if background and are_shapes_held_out(a.shape, b.shape, background):
            return True
        if a.color and b.color and are_pairs_held_out((a.color, a.shape), (b.color, b.shape)):
            return True
    if statement.relation is None:
        return False
    a, b = groups[0], groups[1]
    if a.color and b.color:
        return is_relation_held_out((a.color, a.shape), statement.relation, (b.color, b.shape))
    return are_shapes_in_relation_held_out(a.shape, statement.relation, b.shape)
