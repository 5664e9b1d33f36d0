"""A model and data for whole runs of training."""

import json

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def model(tiny_checkpoint):
    return str(tiny_checkpoint)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training-data")
    rows = []
    for i in range(4):
        Image.new("RGB", (72, 64), (60 * i, 10, 200)).save(folder / f"{i}.png")
        Image.new("L", (72, 64), 60 * i).save(folder / f"edge{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a circle number {i}", "edges": f"edge{i}.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)
