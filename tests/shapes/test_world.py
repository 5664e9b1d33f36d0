"""The world keeps its promises: geometry, palette, captions that are true, pictures that show the scene."""

from itertools import combinations

import numpy as np
import pytest

from ppsd3.shapes import judge, world
from ppsd3.shapes.prompts import Requirement
from ppsd3.shapes.scene import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, TASKS, Object, Scene, relation_between
from ppsd3.utils.errors import InputError


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(3)
    return [world.sample_scene(rng) for _ in range(4000)]


def test_objects_stay_apart_and_inside(scenes):
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 4
        for o in scene.objects:
            assert min(o.x, o.y, 1 - o.x, 1 - o.y) - SIZES[o.size] >= 1.9 / 64
        for a, b in combinations(scene.objects, 2):
            gap = max(abs(a.x - b.x), abs(a.y - b.y)) - SIZES[a.size] - SIZES[b.size]
            assert gap >= 3 / 64


def test_relations_are_never_close_calls(scenes):
    for scene in scenes:
        for a, b in combinations(scene.objects, 2):
            dx, dy = abs(a.x - b.x), abs(a.y - b.y)
            assert (dx >= 0.3 or dx <= 0.2) and (dy >= 0.3 or dy <= 0.2)
        if scene.task == "position":
            assert relation_between(*scene.objects) in RELATIONS


def test_colors_are_well_apart():
    def distance(a, b):
        return np.linalg.norm(np.subtract(a, b))

    assert min(distance(a, b) for a, b in combinations(COLORS.values(), 2)) >= 90
    assert min(distance(a, b) for a in COLORS.values() for b in BACKGROUNDS.values()) >= 100
    assert min(distance(a, b) for a, b in combinations(BACKGROUNDS.values(), 2)) >= 60


def test_everything_is_drawn_in_training(scenes):
    objects = [o for s in scenes for o in s.objects]
    assert {o.shape for o in objects} == set(SHAPES)
    assert {o.color for o in objects} == set(COLORS)
    assert {o.size for o in objects} == set(SIZES)
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {s.task for s in scenes} == {*TASKS, "free"}
    assert {len(s.objects) for s in scenes if s.task == "counting"} == {1, 2, 3, 4}


def test_sampling_follows_the_seed_task_and_split():
    def draw(seed, **options):
        return world.sample_scene(np.random.default_rng(seed), **options)

    assert draw(5) == draw(5) != draw(6)
    for task in (*TASKS, "free"):
        for split in world.SPLITS:
            scene = draw(7, task=task, split=split)
            assert scene.task == task and world.is_held_out(scene) == (split == "unseen")


@pytest.mark.parametrize("arguments", [{"task": "colour"}, {"split": "test"}])
def test_unknown_task_or_split(arguments):
    with pytest.raises(InputError, match=next(iter(arguments.values()))):
        world.sample_scene(np.random.default_rng(0), **arguments)


def test_captions_are_short_plain_and_varied(scenes):
    rng = np.random.default_rng(0)
    captions = [world.caption(scene, rng) for scene in scenes]
    words = {word for text in captions for word in text.replace(",", "").split()}
    assert max(len(text.split()) for text in captions) <= 20
    assert len(words) <= 64 and all(w.isalnum() and w == w.lower() for w in words)
    assert len({world.caption(scenes[0], rng) for _ in range(50)}) > 5


def test_statements_are_true_and_complete(scenes):
    """What a caption states is met by its own scene, object for object."""
    rng = np.random.default_rng(1)
    for scene in scenes:
        found = tuple(judge.FoundObject(o.shape, o.color, o.size, o.x, o.y, 1.0) for o in scene.objects)
        statement = world.state(scene, rng)
        assert judge.meets(Requirement(scene.task, statement), judge.Reading(found, scene.background))
        assert (statement.relation is not None) == (scene.task == "position")


def test_wording_of_a_known_scene():
    scene = Scene(
        (Object("ring", "orange", "small", 0.25, 0.5), Object("cross", "red", "large", 0.75, 0.5)), "navy", "position"
    )
    rng = np.random.default_rng(0)
    captions = {world.caption(scene, rng) for _ in range(3000)}
    assert "an orange ring to the left of a red cross" in captions
    assert "a red cross right of an orange ring on a navy background" in captions
    assert "an orange ring on the left and a red cross on the right" in captions
    assert not any("left of an orange" in c or "above" in c or "large orange" in c for c in captions)


def test_render_shows_colors_where_the_objects_are(scenes):
    pictures = world.render_batch(scenes[:100])
    assert pictures.shape == (100, 64, 64, 3) and pictures.dtype == np.uint8
    for scene, picture in zip(scenes, pictures):
        assert tuple(picture[0, 0]) == BACKGROUNDS[scene.background]
        for o in scene.objects:
            middle = tuple(picture[int(o.y * 64), int(o.x * 64)])
            assert middle == (BACKGROUNDS[scene.background] if o.shape == "ring" else COLORS[o.color])


def test_render_batch_is_render_one_by_one(scenes):
    singly = np.stack([world.render(scene) for scene in scenes[:20]])
    np.testing.assert_array_equal(world.render_batch(scenes[:20]), singly)


@pytest.mark.parametrize("shape", SHAPES)
def test_render_agrees_with_supersampling(shape):
    """The antialiased 64-pixel picture is the average of a far finer one."""
    scene = Scene((Object(shape, "blue", "small", 0.43, 0.61),), "white")
    fine = world.render(scene, 512).reshape(64, 8, 64, 8, 3).mean((1, 3))
    difference = np.abs(world.render(scene) - fine)
    assert difference.max() < 75  # at the tip of the triangle
    assert difference.mean() < 0.25
