"""Pictures from files and links."""

import http.server
import io
import os
import threading
import zlib

import numpy as np
import paddle
import pytest
from helpers import pictures
from helpers.process import run
from PIL import Image, ImageOps

from ppsd3.utils import load_image, make_image_grid
from ppsd3.utils.errors import InputError
from ppsd3.utils.images import open_picture, read_pictures


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype="uint8"))


def pixels(picture):
    return np.asarray(picture).tolist()


def test_from_a_file_and_a_picture(picture, tmp_path):
    picture.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), picture, picture.convert("RGBA")):
        loaded = load_image(source)
        assert loaded.mode == "RGB" and pixels(loaded) == pixels(picture)
    assert load_image(picture, convert_method=lambda one: one.convert("L")).mode == "L"


def test_it_is_turned_upright(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    picture.save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (6, 8)


def test_from_a_link(picture, tmp_path):
    picture.save(tmp_path / "a.png")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        assert pixels(load_image(f"{root}/a.png")) == pixels(picture)
        with pytest.raises(InputError, match="404"):
            load_image(f"{root}/b.png")
    finally:
        server.shutdown()


def test_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for source in (tmp_path / "a.png", "missing.png"):
        with pytest.raises(InputError, match="Check the path"):
            load_image(source)
    for wrong in (3, None, [picture]):
        with pytest.raises(InputError, match="`image` is"):
            load_image(wrong)
    with pytest.raises(InputError, match="`convert_method`"):
        load_image("missing.png", convert_method=3)


def test_grid(picture):
    other = Image.new("RGB", picture.size, "red")
    grid = make_image_grid([picture, other, other, picture], rows=2, cols=2)
    assert grid.size == (16, 12)
    assert pixels(grid.crop((0, 0, 8, 6))) == pixels(grid.crop((8, 6, 16, 12))) == pixels(picture)
    assert pixels(grid.crop((8, 0, 16, 6))) == pixels(other)
    assert make_image_grid([picture], 1, 1, resize=4).size == (4, 4)
    for images in ([], [picture]):
        with pytest.raises(InputError, match="2 rows of 2"):
            make_image_grid(images, 2, 2)


# ------------------------------------------------------------------------------------------------------- every picture


@pytest.mark.parametrize("name", pictures.MODES)
def test_every_mode(name):
    image, expected, transparent = pictures.MODES[name]
    found = load_image(image)
    assert found.mode == "RGB" and found is not image
    difference = np.abs(np.asarray(found).astype(int) - expected).max()
    assert difference <= pictures.TOLERANCE.get(name, 0)
    if transparent:
        with pytest.raises(InputError, match=r"`mask` is a mask with transparent parts.*getchannel"):
            read_pictures("mask", image, 1)
    else:
        mask = np.asarray(read_pictures("mask", image, 1).convert("L"))
        expected = np.asarray(Image.fromarray(expected).convert("L")).astype(int)
        assert np.abs(mask - expected).max() <= pictures.TOLERANCE.get(name, 0)


def test_all_modes_of_pil_are_in_the_table():
    known = {name.split()[0] for name in pictures.MODES}
    assert set(Image.MODES if hasattr(Image, "MODES") else ()) - known <= {"I;16L", "I;16N"}  # I;16 in other words


def test_every_level_of_alpha_and_of_sixteen_bits():
    levels = np.arange(256, dtype="uint8").reshape(16, 16)
    picture = Image.merge("RGBA", [Image.fromarray(np.full_like(levels, 40))] * 3 + [Image.fromarray(levels)])
    expected = 255 + (40 - 255) * (levels / 255)
    assert np.abs(np.asarray(load_image(picture))[..., 0] - expected).max() < 1
    opaque = Image.merge("RGBA", [Image.fromarray(levels)] * 3 + [Image.new("L", (16, 16), 255)])
    assert np.array_equal(np.asarray(load_image(opaque))[..., 1], levels)
    every = np.arange(65536, dtype="uint16").reshape(256, 256)
    found = np.asarray(load_image(Image.fromarray(every)))[..., 2]
    assert np.array_equal(found, np.round(every / 257))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation(kind, tmp_path):
    upright = Image.new("RGB", (48, 32), "black")
    upright.paste("white", (0, 0, 24, 16))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # PIL's Transpose that the camera has done
        stored = upright if undo is None else upright.transpose(undo)
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
        path = tmp_path / f"{orientation}.{kind.lower()}"
        stored.save(path, kind, exif=exif, **options)
        for source in (path, Image.open(path), load_image(path)):  # the last one is not turned again
            found = load_image(source)
            assert found.size == upright.size
            assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).max() < 9, orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")), np.asarray(found))
        mask = read_pictures("mask", Image.open(path).convert("L"), 1)
        assert mask.size == upright.size


def test_sixteen_bit_files(tmp_path):
    every = np.arange(65536, dtype="uint16").reshape(256, 256)
    for kind in ("png", "tiff"):
        Image.fromarray(every).save(tmp_path / f"x.{kind}")
        assert np.array_equal(np.asarray(load_image(tmp_path / f"x.{kind}"))[..., 0], np.round(every / 257))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in every)
    (tmp_path / "key.png").write_bytes(pictures.png(256, 256, rows, 16, 0, pictures.chunk(b"tRNS", b"\0\0")))
    found = np.asarray(load_image(tmp_path / "key.png"))[..., 0]
    assert found[0, 0] == 255 and found[0, 200] == 1  # the level 0 is transparent, so white


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame(kind, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(tmp_path / "x").n_frames == 2
    assert load_image(tmp_path / "x").getpixel((4, 4)) == (255, 0, 0)


def write(path, content):
    path.write_bytes(content)
    return path


def test_files_that_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    noise = pictures.encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")))
    text = b"ppsd3\0" + zlib.compress(b"x" * (1 << 22))
    swollen = noise[:33] + pictures.chunk(b"zTXt", b"Comment\0" + text[6:].join([b"\0", b""])) + noise[33:]
    refused = {
        "drawing.svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG"),
        "page.png": (b"\n<!DOCTYPE html><html>", "web page"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "empty.png": (b"", "empty"),
        "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        "noise": (bytes(range(256)), "none of PNG"),
        "cut.png": (noise[:2000], "truncated"),
        "cut.jpg": (pictures.encoded(Image.new("RGB", (200, 200)), "JPEG")[:700], "truncated"),
        "cut.gif": (pictures.encoded(Image.new("L", (200, 200)), "GIF")[:20], "picture"),
        "bomb.png": (pictures.png(30000, 30000), "30000 x 30000|limit"),
        "large.png": (pictures.png(8193, 8192), "67,108,864"),
        "huge.png": (pictures.png(2**31 - 1, 2**31 - 1), "limit"),
        "swollen.png": (swollen, "Decompressed data too large"),
    }
    for name, (content, message) in refused.items():
        with pytest.raises(InputError, match=message) as caught:
            load_image(write(tmp_path / name, content))
        assert name in str(caught.value)
    for path, message in ((tmp_path / "pipe", "device"), (tmp_path, "directory"), ("a\0b", "no such file")):
        with pytest.raises(InputError, match=message):
            load_image(path)
    lazy = Image.open(tmp_path / "cut.png")
    with pytest.raises(InputError, match=r"`image` \(.*cut.png\) cannot be read"):
        read_pictures("image", lazy)


def test_an_open_file(tmp_path):
    content = pictures.encoded(pictures.colours())
    assert open_picture(io.BytesIO(content), "a record").tobytes() == pictures.colours().tobytes()
    with pytest.raises(InputError, match="a record cannot be read as a picture: it is a PostScript"):
        open_picture(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "a record")


def test_damaged_pictures_are_read_or_refused(tmp_path):
    """Three hundred mutations of files of five kinds."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype="uint8"))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    originals = {
        "PNG": pictures.encoded(photo, exif=exif),
        "JPEG": pictures.encoded(photo, "JPEG", exif=exif),
        "GIF": pictures.encoded(photo.convert("P"), "GIF", save_all=True, append_images=[photo.convert("P")]),
        "TIFF": pictures.encoded(photo, "TIFF"),
        "WEBP": pictures.encoded(photo, "WEBP", exif=exif),
    }
    read = 0
    for kind, content in originals.items():
        for _ in range(60):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
            if rng.random() < 0.2:
                damaged = damaged[: rng.integers(len(damaged))]
            path = write(tmp_path / f"x.{kind}", bytes(damaged))
            read += outcome(path)
    assert read > 50


def outcome(path):
    """Whether a file is read; else it is refused by name."""
    try:
        return load_image(path).mode == "RGB"
    except InputError as error:
        return str(path) not in str(error) and pytest.fail(str(error))


@pytest.mark.machine
def test_a_small_file_costs_little(tmp_path):
    """The largest pictures that a few kilobytes can hold, with a whole process for each."""
    rows = bytes((8192 * 4 + 1) * 8192)
    program = (
        "import resource, sys, time; start = time.process_time()\n"
        "from ppsd3.utils import load_image\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "load_image(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)\n"
    )
    path = write(tmp_path / "large.png", pictures.png(8192, 8192, rows, 8, 6))
    assert path.stat().st_size < 1e6
    kilobytes, seconds = map(float, run(program, path).split())
    assert kilobytes < 1e6 and seconds < 5


# ------------------------------------------------------------------------------------------------- arrays and tensors


def test_arrays_and_tensors_of_every_type():
    levels = pictures.RGB[::8, ::8]
    expected = levels / np.float32(255)
    for array in (
        levels,
        levels.astype("uint16") * 257,
        levels.astype(">u2") * 257,
        levels > 127,
        expected,
        levels / 255,
    ):
        found = read_pictures("image", array)
        assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-6
    front = np.ascontiguousarray(np.moveaxis(levels, -1, 0))
    for tensor in (paddle.to_tensor(front), paddle.to_tensor(front > 127), paddle.to_tensor(front / np.float32(255))):
        found = read_pictures("image", tensor)
        assert isinstance(found, paddle.Tensor)
        assert np.abs(found.numpy() - np.moveaxis(expected, -1, 0)).max() < 1e-6
    grey = levels[..., 0]
    for same in (grey, grey[..., None], grey[None, ..., None]):
        found = read_pictures("image", same)
        assert found.shape[-3:] == (8, 8, 3) and np.array_equal(found.reshape(-1, 3)[:, 1], expected[..., 0].ravel())
    assert read_pictures("mask", grey > 0, 1).shape == (8, 8, 1)
    assert read_pictures("mask", np.stack([grey, grey]), 1).shape == (2, 8, 8, 1)
    for shape, given in (([1, 8, 8], [8, 8]), ([1, 8, 8], [1, 8, 8]), ([2, 1, 8, 8], [2, 8, 8]), ([2, 1, 8, 8],) * 2):
        assert read_pictures("mask", paddle.ones(given), 1).shape == shape
    below = read_pictures("image", paddle.to_tensor([[[-1e-5, 0.5]]]))
    assert float(below.min()) == 0  # rounding, and not a picture in [-1, 1]


@pytest.mark.parity
def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    levels = pictures.RGB[::8, ::8]
    tensor = torch.from_numpy(levels / np.float32(255)).permute(2, 0, 1)
    for given in (tensor, tensor.bfloat16(), tensor[None], torch.from_numpy(levels).permute(2, 0, 1)):
        found = read_pictures("image", given)
        assert isinstance(found, paddle.Tensor) and np.abs(found.numpy() - tensor.numpy()).max() < 1e-2


GREY = np.full([8, 8], 0.25, "float32")
REFUSED = {
    "above 1": (GREY + 100, 3, r"from 100.25 to 100.25; floats are in \[0, 1\].*255"),
    "below 0": (GREY - 1, 3, r"\[0, 1\]"),
    "NaN": (GREY * np.nan, 3, "nan"),
    "infinity": (GREY + np.inf, 3, "inf"),
    "a tensor above 1": (paddle.full([3, 8, 8], 1.5), 3, r"\[-1, 1\]"),
    "a tensor below -1": (paddle.full([3, 8, 8], -1.5), 3, r"\[-1, 1\]"),
    "a tensor of NaN": (paddle.to_tensor(np.where(np.eye(8) > 0, np.nan, 0.5).astype("float32"))[None], 3, "NaN"),
    "latents of infinity": (paddle.full([16, 8, 8], np.inf), 3, "finite"),
    "whole numbers": (np.ones([8, 8], "int64"), 3, "int64, whose white is not known"),
    "a tensor of whole numbers": (paddle.ones([3, 8, 8], "int32"), 3, "int32, whose white is not known"),
    "objects": (np.full([8, 8], None), 3, "object"),
    "channels first": (np.zeros([3, 8, 8]), 3, "np.moveaxis"),
    "channels last": (paddle.zeros([8, 8, 3]), 3, "paddle.moveaxis"),
    "four channels": (np.zeros([8, 8, 4]), 3, r"\[H, W, 3\]"),
    "one axis": (np.zeros([8]), 3, "shape"),
    "no pixels": (np.zeros([0, 8, 3]), 3, "shape"),
    "a tensor without pixels": (paddle.zeros([3, 0, 8]), 3, "shape"),
    "a picture without pixels": (Image.new("RGB", (0, 8)), 3, "0 x 8"),
    "levels of unknown white": (Image.fromarray(np.int32([[0, 200]])), 3, "mode I.*L if white is 255"),
    "negative levels": (Image.fromarray(np.int32([[-1, 200]])), 3, "mode I"),
    "floats of levels": (Image.fromarray(np.float32([[0, 200]])), 3, r"floats are in \[0, 1\]"),
    "a coloured mask": (np.zeros([8, 8, 3]), 1, r"\[H, W, 3\], the shape of colours.*mask\[..., 0\]"),
    "coloured masks": (np.zeros([2, 8, 8, 3]), 1, r"has to be \[H, W\]"),
    "a coloured mask's tensor": (paddle.zeros([1, 3, 8, 8]), 1, r"\[B, 1, H, W\]"),
    "a mask of -1": (paddle.full([8, 8], -1.0), 1, r"\[0, 1\]"),
    "a mask of 0 and 1": (np.eye(8, dtype="uint8"), 1, r"marks nothing.*mask \* 255"),
    "a picture of 0 and 1": (Image.fromarray(np.eye(8, dtype="uint8")), 1, "marks nothing"),
    "a path": ("x.png", 3, "load_image"),
    "none": (None, 3, "NoneType"),
    "an empty list": ([], 3, "empty list"),
    "another element": ([GREY, 7], 3, r"`argument`\[1\] is a int"),
    "several kinds": ([GREY, Image.new("L", (8, 8))], 3, "several kinds"),
    "several sizes": ([GREY, GREY[1:]], 3, "differ in size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    images, channels, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        read_pictures("argument", images, channels, latent_channels=16)
    assert "`argument`" in str(caught.value)
