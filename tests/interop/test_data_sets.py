"""Training data in the layouts of other libraries, written by these."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from ppsd3.training.data.samples import Columns, open_samples
from ppsd3.utils.errors import InputError

pytestmark = pytest.mark.interop


def picture(red):
    """A picture whose red says which it is."""
    pixels = np.zeros([64, 80, 3], np.uint8)
    pixels[..., 0] = red
    return Image.fromarray(pixels)


def found(samples):
    return [(s.key, s.caption, s.open().getpixel((0, 0))[0]) for s in samples]


def test_web_dataset_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(2):
                buffer = io.BytesIO()
                picture(20 * (2 * shard + i)).save(buffer, "png")
                for suffix, content in (("png", buffer.getvalue()), ("txt", f"number {2 * shard + i}".encode())):
                    info = tarfile.TarInfo(f"s{i}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    assert found(open_samples(str(tmp_path / "*.tar"))) == [
        ("0.tar/s0", "number 0", 0),
        ("0.tar/s1", "number 1", 20),
        ("1.tar/s0", "number 2", 40),
        ("1.tar/s1", "number 3", 60),
    ]


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_data_sets_of_hugging_face(tmp_path, kind):
    import datasets

    table = datasets.Dataset.from_dict(
        {"image": [picture(20 * i) for i in range(3)], "text": [f"number {i}" for i in range(3)]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    if kind == "disk":
        table.save_to_disk(str(tmp_path / "set"))
    else:
        os.makedirs(tmp_path / "set")
        table.to_parquet(str(tmp_path / "set" / "part.parquet"))
    samples = open_samples(str(tmp_path / "set"))
    assert [(s.caption, s.open().getpixel((0, 0))[0]) for s in samples] == [(f"number {i}", 20 * i) for i in range(3)]
    with pytest.raises(InputError, match=r"no column 'picture'; it has image, text"):
        open_samples(str(tmp_path / "set"), Columns(picture="picture"))
