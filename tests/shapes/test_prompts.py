"""Evaluation asks only for what training never shows, and training shows every part of it."""

import numpy as np
import pytest

from ppsd3.shapes import held_out, world
from ppsd3.shapes.prompts import evaluation_prompts
from ppsd3.shapes.scene import COLORS, RELATIONS, SHAPES, TASKS
from ppsd3.utils.errors import InputError


@pytest.fixture(scope="module")
def training():
    """(scene, statement, caption) of many training draws."""
    rng = np.random.default_rng(11)
    rows = []
    for _ in range(20000):
        scene = world.sample_scene(rng)
        statement = world.state(scene, rng)
        rows.append((scene, statement, world.phrase(statement, rng)))
    return rows


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_different_held_out_and_repeatable(task):
    prompts = evaluation_prompts(task, 60, seed=1)
    assert len({text for text, _ in prompts}) == 60
    assert all(r.task == task and held_out.states_held_out(r.statement) for _, r in prompts)
    assert prompts == evaluation_prompts(task, 60, seed=1) != evaluation_prompts(task, 60, seed=2)


def test_no_training_statement_names_a_held_out_combination(training):
    """With captions being true, this is why no evaluation prompt can occur in training in any wording."""
    assert not any(held_out.states_held_out(statement) for _, statement, _ in training)


def test_no_evaluation_prompt_is_a_training_caption(training):
    asked = {text for task in TASKS for seed in range(3) for text, _ in evaluation_prompts(task, 70, seed)}
    assert asked.isdisjoint({text for *_, text in training})


def test_what_names_a_held_out_combination_describes_only_held_out_scenes():
    rng = np.random.default_rng(2)
    named = 0
    for _ in range(4000):
        scene = world.sample_scene(rng, split="unseen")
        named += held_out.states_held_out(world.state(scene, rng))
    assert named > 1000  # the converse is the test above


def test_training_shows_every_part(training):
    scenes = [scene for scene, *_ in training]
    pairs = {o.pair for s in scenes for o in s.objects}
    assert pairs == {(c, s) for c in COLORS for s in SHAPES} - held_out.HELD_OUT_PAIRS
    said = {(s.groups[0].shape, s.relation) for _, s, _ in training if s.relation}
    assert said == {(shape, relation) for shape in SHAPES for relation in RELATIONS}
    counted = {(g.count, g.color) for _, s, _ in training for g in s.groups if g.count > 1 and g.color}
    assert counted == {(n, c) for n in (2, 3, 4) for c in COLORS}
    counted = {(g.count, g.shape) for _, s, _ in training for g in s.groups if g.count > 1}
    assert counted == {(n, s) for n in (2, 3, 4) for s in SHAPES}


def test_relations_are_held_out_in_both_directions():
    for a in (("red", "cross"), ("blue", "ring")):
        for b in (("green", "triangle"), ("yellow", "square")):
            assert held_out.is_relation_held_out(a, "left", b) == held_out.is_relation_held_out(b, "right", a)
            assert held_out.is_relation_held_out(a, "above", b) == held_out.is_relation_held_out(b, "below", a)


@pytest.mark.parametrize("task", ["counting", "position", "color_attr"])
def test_most_prompts_recombine_seen_pairs(task):
    prompts = evaluation_prompts(task, 40)
    unseen = sum(any((g.color, g.shape) in held_out.HELD_OUT_PAIRS for g in r.statement.groups) for _, r in prompts)
    assert unseen == 10


def test_the_plain_forms():
    texts = [text for text, _ in evaluation_prompts("colors", 4)]
    assert sorted(texts) == ["a cyan triangle", "a green cross", "a purple ring", "an orange square"]
    assert all(len(text.split()) == 3 for text, _ in evaluation_prompts("counting", 20))


@pytest.mark.parametrize("task, n", [("colours", 5), ("colors", 0), ("colors", 100000)])
def test_impossible_requests(task, n):
    with pytest.raises(InputError, match=task):
        evaluation_prompts(task, n)
