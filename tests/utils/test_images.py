"""Pictures from files and links."""

import http.server
import threading

import numpy as np
import pytest
from PIL import Image

from ppsd3.utils import load_image, make_image_grid
from ppsd3.utils.errors import InputError


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
    with pytest.raises(InputError, match="int"):
        load_image(3)


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
