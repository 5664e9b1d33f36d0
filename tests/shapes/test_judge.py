"""The judge reads true pictures right, under the blur and noise of a decoder too, and refuses wrong ones."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ppsd3.shapes import judge, sheet, world
from ppsd3.shapes.prompts import Requirement, evaluation_prompts
from ppsd3.shapes.scene import BACKGROUNDS, COLORS, TASKS, Group, Object, Scene, Statement
from ppsd3.utils.errors import InputError


@pytest.fixture(scope="module")
def truth():
    """Scenes of both splits and their pictures."""
    rng = np.random.default_rng(21)
    scenes = [world.sample_scene(rng, split=world.SPLITS[i % 2]) for i in range(2000)]
    return scenes, world.render_batch(scenes)


def is_right(scene, reading):
    """Every object found once, with all its attributes and within 2 pixels, and nothing else."""
    if scene.background != reading.background or len(scene.objects) != len(reading.objects):
        return False
    return all(
        sum(
            (f.shape, f.color, f.size) == (o.shape, o.color, o.size) and max(abs(f.x - o.x), abs(f.y - o.y)) < 2 / 64
            for f in reading.objects
        )
        == 1
        for o in scene.objects
    )


def share_right(truth, spoil, count):
    scenes, pictures = truth[0][:count], truth[1][:count]
    return np.mean([is_right(s, judge.read_picture(spoil(p))) for s, p in zip(scenes, pictures)])


def add_noise(picture, sigma=8):
    rng = np.random.default_rng(int(picture.sum()))
    return np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 255).round().astype(np.uint8)


def blur(picture, radius=0.7):
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def compress(picture, quality=75):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())))


def shift_colors(picture):
    return np.clip(picture.astype(int) + (8, -8, 6), 0, 255).astype(np.uint8)


def test_reads_true_pictures(truth):
    assert share_right(truth, lambda picture: picture, 2000) >= 0.995


@pytest.mark.parametrize(
    "spoil",
    [add_noise, blur, compress, shift_colors, lambda p: add_noise(blur(p))],
    ids=["noise", "blur", "jpeg", "shift", "blur+noise"],
)
def test_reads_spoilt_pictures(truth, spoil):
    assert share_right(truth, spoil, 400) >= 0.99


def test_reads_twice_the_resolution(truth):
    scenes = truth[0][:50]
    assert all(is_right(s, judge.read_picture(world.render(s, 128))) for s in scenes)


def test_reads_pil_images(truth):
    assert is_right(truth[0][0], judge.read_picture(Image.fromarray(truth[1][0])))


@pytest.mark.parametrize("task", TASKS)
def test_judges_prompts_as_if_it_knew_the_scene(truth, task):
    """Verdicts from pixels equal verdicts from the scene itself, for true prompts and for others' prompts."""
    rng = np.random.default_rng(4)
    chosen = [(s, p) for s, p in zip(*truth) if s.task == task][:150]
    statements = [world.state(s, rng) for s, _ in chosen]
    rejected = 0
    for i, (scene, picture) in enumerate(chosen):
        reading = judge.read_picture(picture)
        assert judge.meets(Requirement(task, statements[i]), reading)
        exact = judge.Reading(tuple(found(o) for o in scene.objects), scene.background)
        for other in statements[i + 1 : i + 11]:
            verdict = judge.meets(Requirement(task, other), reading)
            assert verdict == judge.meets(Requirement(task, other), exact)
            rejected += not verdict
    assert rejected > 0.8 * 10 * (len(chosen) - 10)


def found(o):
    return judge.FoundObject(o.shape, o.color, o.size, o.x, o.y, 1.0)


RED_CIRCLE = Object("circle", "red", "small", 0.25, 0.5)
BLUE_SQUARE = Object("square", "blue", "large", 0.75, 0.5)
BLUE_CIRCLE = Object("circle", "blue", "small", 0.25, 0.5)
RED_SQUARE = Object("square", "red", "large", 0.75, 0.5)
EXTRA = Object("ring", "green", "small", 0.5, 0.85)


@pytest.mark.parametrize(
    "statement, objects, expected",
    [
        (Statement((Group("circle", "red"),)), [RED_CIRCLE], True),
        (Statement((Group("circle"),)), [RED_CIRCLE], True),
        (Statement((Group("circle", size="large"),)), [RED_CIRCLE], False),
        (Statement((Group("circle", "red"),), background="white"), [RED_CIRCLE], True),
        (Statement((Group("circle", "red"),), background="black"), [RED_CIRCLE], False),
        (Statement((Group("circle", "red"),)), [], False),
        (Statement((Group("circle", "red"),)), [RED_CIRCLE, EXTRA], False),
        (Statement((Group("circle", "red"), Group("square", "blue"))), [BLUE_SQUARE, RED_CIRCLE], True),
        (Statement((Group("circle", "red"), Group("square", "blue"))), [BLUE_CIRCLE, RED_SQUARE], False),
        (Statement((Group("circle", "red"), Group("square", "blue")), "left"), [BLUE_SQUARE, RED_CIRCLE], True),
        (Statement((Group("square", "blue"), Group("circle", "red")), "right"), [BLUE_SQUARE, RED_CIRCLE], True),
        (Statement((Group("square", "blue"), Group("circle", "red")), "left"), [BLUE_SQUARE, RED_CIRCLE], False),
        (Statement((Group("square", "blue"), Group("circle", "red")), "above"), [BLUE_SQUARE, RED_CIRCLE], False),
        (Statement((Group("ring", "green", count=2),)), [EXTRA, Object("ring", "green", "large", 0.5, 0.3)], True),
        (Statement((Group("ring", "green", count=3),)), [EXTRA, Object("ring", "green", "large", 0.5, 0.3)], False),
        (Statement((Group("ring", "green", count=2),)), [EXTRA, RED_CIRCLE], False),
    ],
)
def test_meets(statement, objects, expected):
    picture = world.render(Scene(tuple(objects), "white"))
    assert judge.meets(Requirement("any", statement), judge.read_picture(picture)) is expected


def paint(inside, scale, color="blue", background="white"):
    """A 64-pixel picture of a region given by a function of (x, y) in units of ``scale`` pixels, supersampled."""
    fine = ((np.arange(256) + 0.5) / 4 - 32.3) / scale
    alpha = inside(*np.meshgrid(fine, fine)).reshape(64, 4, 64, 4).mean((1, 3))[..., None]
    mixed = np.array(BACKGROUNDS[background]) * (1 - alpha) + np.array(COLORS[color]) * alpha
    return mixed.round().astype(np.uint8)


BLOBS = {
    "ellipse": lambda x, y: (x / 1.2) ** 2 + (y * 1.2) ** 2 < 1,
    "half disc": lambda x, y: (x * x + y * y < 1) & (y > 0),
    "diamond": lambda x, y: abs(x) + abs(y) < 1,
    "bar": lambda x, y: (abs(x) < 1) & (abs(y) < 0.7),
    "corner": lambda x, y: (np.maximum(abs(x), abs(y)) < 1) & ~((x > 0) & (y < 0)),
    "triangle pointing down": lambda x, y: (abs(y) < 0.87) & (abs(x) < (0.87 - y) / 1.74),
    "slanted cross": lambda x, y: (
        (np.maximum(abs(x + y), abs(x - y)) < 1.4) & (np.minimum(abs(x + y), abs(x - y)) < 0.48)
    ),
    "star": lambda x, y: np.hypot(x, y) < 0.72 + 0.28 * np.cos(5 * np.arctan2(y, x)),
    "open ring": lambda x, y: (abs(np.hypot(x, y) - 0.75) < 0.25) & ~((x > 0) & (abs(y) < 0.4)),
    "thin ring": lambda x, y: abs(np.hypot(x, y) - 0.9) < 0.1,
    "two in one": lambda x, y: np.hypot(abs(x) - 0.7, y) < 0.8,
}


@pytest.mark.parametrize("radius", [7.5, 11])
@pytest.mark.parametrize("name", BLOBS)
def test_other_shapes_are_none_of_the_worlds(name, radius):
    objects = judge.read_picture(paint(BLOBS[name], radius)).objects
    assert [o.shape for o in objects] == [None]
    assert not judge.meets(Requirement("any", Statement((Group("circle", "blue"),))), judge.Reading(objects, "white"))


def test_wrong_colors_are_none_of_the_worlds():
    circle = np.full((64, 64, 3), 255, np.uint8)
    y, x = np.mgrid[:64, :64] - 32
    inside = x * x + y * y < 100
    circle[inside] = (100, 100, 100)
    assert [o.color for o in judge.read_picture(circle).objects] == [None]
    circle[inside] = COLORS["red"]
    circle[inside & (x >= 0)] = COLORS["blue"]
    assert [o.color for o in judge.read_picture(circle).objects] == [None]
    assert judge.read_picture(np.full((64, 64, 3), (255, 0, 255), np.uint8)) == judge.Reading((), None)


@pytest.mark.parametrize("radius", [3, 20])
def test_wrong_sizes_are_none_of_the_worlds(radius):
    picture = paint(lambda x, y: x * x + y * y < 1, radius)
    assert [(o.shape, o.size) for o in judge.read_picture(picture).objects] == [("circle", None)]


def test_noise_is_no_picture():
    rng = np.random.default_rng(0)
    requirements = [r for task in TASKS for _, r in evaluation_prompts(task, 10)]
    noise = rng.integers(0, 256, (len(requirements), 64, 64, 3), dtype=np.uint8)
    assert judge.score(requirements, noise)["overall"] == 0


def test_score_is_the_mean_over_tasks():
    white = world.render(Scene((RED_CIRCLE,), "white"))

    def requirement(task, color):
        return Requirement(task, Statement((Group("circle", color),)))

    asked = [requirement("colors", "red"), requirement("colors", "blue"), requirement("counting", "red")]
    assert judge.score(asked, [white] * 3) == {"colors": 0.5, "counting": 1.0, "overall": 0.75}
    with pytest.raises(InputError, match="one image each"):
        judge.score(asked, [white])


@pytest.mark.parametrize(
    "image", [np.zeros((64, 32, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match="square RGB"):
        judge.read_picture(image)


def test_pieces_are_counted_however_they_wind():
    rows = [
        "#########",
        "........#",
        "#######.#",
        "#.....#.#",
        "#.###.#.#",
        "#.#...#.#",
        "#.#####.#",
        "#.......#",
        "#########",
    ]
    mask = np.array([[c == "#" for c in row] for row in rows])
    assert len(np.unique(judge._connected_pieces(mask))) == 2  # background and one spiral
    mask[1, 8] = False
    assert len(np.unique(judge._connected_pieces(mask))) == 3
    assert not judge._connected_pieces(np.zeros((4, 4), bool)).any()


def test_contact_sheet():
    page = sheet.contact_sheet([world.render(Scene((RED_CIRCLE,), "white"))] * 5, ["a red circle"] * 5, columns=2)
    assert page.width == 2 * 168 + 8 and page.mode == "RGB"
    with pytest.raises(InputError, match="caption"):
        sheet.contact_sheet([], [])
