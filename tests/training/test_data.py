"""Training data: samples from where people keep them, their sizes, and the batches that a run sees."""

import csv
import json
import os

import numpy as np
import pytest
from helpers import tiny
from PIL import Image

from ppsd3.training.caches import LatentCache
from ppsd3.training.data.batches import Augmentation, BatchPlan, SampleBatches
from ppsd3.training.data.buckets import Buckets, Crop
from ppsd3.training.data.samples import Columns, open_samples, usable
from ppsd3.utils.errors import CheckpointNotFoundError, InputError


def picture(red, size=(80, 64)):
    """A picture whose red says which it is, brighter at the left."""
    pixels = np.zeros([size[1], size[0], 3], np.uint8)
    pixels[..., 0] = red
    pixels[:, : size[0] // 2, 1] = 200
    return Image.fromarray(pixels)


def write(folder, count=3, captions=True, size=(80, 64)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(20 * i, size).save(folder / f"p{i}.png")
        if captions:
            (folder / f"p{i}.txt").write_text(f"number {i}\n", encoding="utf-8")
    return str(folder)


def found(samples):
    return [(s.key, s.caption, s.open().getpixel((0, 0))[0]) for s in samples]


def test_folder_with_captions_in_text_files(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "a" / "deeper", count=1)
    assert found(open_samples(str(tmp_path / "a"))) == [
        ("p0.png", "number 0", 0),
        ("p1.png", "number 1", 20),
        ("p2.png", "number 2", 40),
        (os.path.join("deeper", "p0.png"), "number 0", 0),
    ]


def test_folder_with_one_prompt(tmp_path):
    folder = write(tmp_path, captions=False)
    assert {s.caption for s in open_samples(folder, instance_prompt="a sks dog")} == {"a sks dog"}
    with pytest.raises(InputError, match=r"p0\.png has no caption: .*p0\.txt is missing.*instance_prompt"):
        open_samples(folder)
    (tmp_path / "p0.txt").write_bytes(b"\xff\xfe caption")
    with pytest.raises(InputError, match=r"p0\.txt.*UTF-8"):
        open_samples(folder)


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_folder_with_a_table(tmp_path, table):
    folder = write(tmp_path, captions=False)
    rows = [{"file_name": f"p{i}.png", "text": f"no. {i}", "other": "x", "edges": "p0.png"} for i in (2, 0)]
    write_table(tmp_path / table, rows)
    assert found(open_samples(folder)) == [("p2.png", "no. 2", 40), ("p0.png", "no. 0", 0)]
    assert [s.caption for s in open_samples(folder, Columns(caption="other"))] == ["x", "x"]
    controlled = open_samples(folder, Columns(control="edges"))
    assert [s.open_control().getpixel((0, 0))[0] for s in controlled] == [0, 0]
    with pytest.raises(InputError, match=r"row 1 has no 'title'; its columns are file_name"):
        open_samples(folder, Columns(caption="title"))


def write_table(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize(
    "row, named",
    [
        ({"file_name": "../secret.png", "text": "x"}, r"row 1 names '\.\./secret\.png', which lies outside"),
        ({"file_name": "/etc/passwd", "text": "x"}, "lies outside"),
        ({"file_name": "absent.png", "text": "x"}, r"'absent\.png', which is not in"),
        ({"text": "x"}, "row 1 has no file_name"),
        ({"file_name": "p0.png", "note": "x"}, r"row 1 has no caption: its columns are file_name, note"),
    ],
)
def test_wrong_rows(tmp_path, row, named):
    folder = write(tmp_path / "data", captions=False)
    picture(0).save(tmp_path / "secret.png")
    write_table(tmp_path / "data" / "metadata.jsonl", [row])
    with pytest.raises(InputError, match=named):
        open_samples(folder)


def test_a_line_that_is_no_json(tmp_path):
    folder = write(tmp_path, captions=False)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "p0.png", "text": "x"}\n{"file_name": ')
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 2"):
        open_samples(folder)


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        open_samples(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointNotFoundError, match=r"none\.tar"):
        open_samples(str(tmp_path / "none.tar"))
    with pytest.raises(InputError, match="has no pictures"):
        open_samples(str(tmp_path))


def test_broken_and_tiny_pictures_are_named_or_left_out(tmp_path, caplog):
    folder = write(tmp_path)
    (tmp_path / "p0.png").write_bytes(b"no picture")
    picture(1, (20, 20)).save(tmp_path / "p1.png")
    samples = open_samples(folder)
    with pytest.raises(InputError, match=r"p0\.png"):
        usable(samples, 32, skip_broken=False)
    with pytest.raises(InputError, match=r"p1\.png has 20x20 pixels.*32"):
        usable(samples[1:], 32, skip_broken=False)
    assert [s.key for s in usable(samples, 32, skip_broken=True)] == ["p2.png"]
    assert "2 of 3 pictures are left out" in caplog.text
    with pytest.raises(InputError, match="None of 2"):
        usable(samples[:2], 32, skip_broken=True)


def test_cameras_turn_and_transparency_is_white(tmp_path):
    turned = picture(50, (40, 80))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "b.png")
    first, second = open_samples(str(tmp_path), instance_prompt="x")
    assert first.open().size == (80, 40)
    assert second.open().getpixel((0, 0)) == (255, 255, 255)


def test_buckets_have_about_the_same_pixels():
    buckets = Buckets(1024, step=64, max_aspect=2.0)
    assert (1024, 1024) in buckets.sizes and (1408, 704) in buckets.sizes
    for width, height in buckets.sizes:
        assert width % 64 == height % 64 == 0 and 0.85 * 1024**2 < width * height <= 1024**2
        assert 0.5 <= width / height <= 2
    assert buckets.nearest((4000, 3000)) == (1152, 896) and buckets.nearest((100, 900)) == (704, 1408)
    assert Buckets(64, 16, 1.0).sizes == [(64, 64)]
    with pytest.raises(InputError, match=r"resolution is 1000"):
        Buckets(1000)
    with pytest.raises(InputError, match=r"max_aspect is 0\.5"):
        Buckets(1024, 64, 0.5)


def test_crops_keep_the_aspect_ratio():
    source = Image.fromarray(np.add.outer(np.arange(100) * 0, np.arange(200)).astype(np.uint8)).convert("RGB")
    left, centre, right = (Crop((50, 50), (place, 0.5)).apply(source)[0, :, 0].mean() for place in (0, 0.5, 1))
    assert (
        left == pytest.approx(50, abs=2) and centre == pytest.approx(100, abs=2) and right == pytest.approx(150, abs=2)
    )
    row = Crop((50, 50), (0, 0.5), flip=True).apply(source)[0, :, 0].astype(int)
    assert row[0] > row[-1]
    assert Crop((300, 100)).apply(source).shape == (100, 300, 3)  # enlarged to cover


def test_every_epoch_has_every_sample_and_batches_one_size():
    sizes = [(64, 64)] * 7 + [(80, 48)] * 3
    plan = BatchPlan(sizes, batch_size=2, seed=3)
    assert plan.batches_per_epoch == 4 + 2
    orders = []
    for epoch in range(3):
        batches = [plan(epoch * 6 + i) for i in range(6)]
        assert all(len({sizes[i] for i in batch}) == 1 and len(batch) == 2 for batch in batches)
        assert set(np.concatenate(batches)) == set(range(10))
        orders.append(np.concatenate(batches).tolist())
    assert orders[0] != orders[1]
    again = BatchPlan(sizes, batch_size=2, seed=3)
    assert again(14).tolist() == plan(14).tolist()  # whatever was asked before


@pytest.fixture(scope="module")
def vae():
    return tiny.make_components()["vae"]


def batches(folder, vae, directory=None, **options):
    samples = open_samples(folder)
    return SampleBatches(samples, LatentCache(vae, directory), Buckets(64, 16, 1.5), **options)


def test_a_changed_picture_is_encoded_anew(tmp_path, vae):
    folder = write(tmp_path / "data", count=1)
    before = batches(folder, vae, str(tmp_path / "cache"))(np.random.default_rng(0), 0).latents
    picture(255).save(tmp_path / "data" / "p0.png")
    after = batches(folder, vae, str(tmp_path / "cache"))(np.random.default_rng(0), 0).latents
    assert np.abs(before - after).max() > 1e-2


def test_priors_have_their_own_rows_and_weight(tmp_path, vae):
    instances = open_samples(write(tmp_path / "a", count=2))
    priors = open_samples(write(tmp_path / "b", count=4, captions=False), instance_prompt="a dog", is_prior=True)
    data = SampleBatches(
        instances, LatentCache(vae), Buckets(64, 16, 1.0), batch_size=2, priors=priors, prior_weight=0.5
    )
    batch = data(np.random.default_rng(0), 0)
    assert batch.prompts[2:] == ["a dog"] * 2 and batch.latents.shape[0] == 4
    errors = np.array([1.0, 3.0, 10.0, 20.0])
    assert (errors * batch.weights).mean() == pytest.approx(2.0 + 0.5 * 15.0)
    assert data.captions == ["a dog", "number 0", "number 1"]
    assert data.configuration["priors"] == 4


def test_augmentation_is_drawn_from_the_batch_alone(tmp_path, vae):
    folder = write(tmp_path, count=1, size=(128, 64))
    options = dict(augmentation=Augmentation(random_flip=True, random_crop=True))
    data = batches(folder, vae, **options)
    first = [data(np.random.default_rng(n), n).latents for n in range(8)]
    again = batches(folder, vae, **options)
    for n in (5, 2):
        np.testing.assert_array_equal(again(np.random.default_rng(n), n).latents, first[n])
    assert len({x.tobytes() for x in first}) > 3
