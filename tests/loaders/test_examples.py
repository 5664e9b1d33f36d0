"""The examples on single files and prompts run as they stand."""

import pathlib
import runpy

import pytest
from PIL import Image

EXAMPLES = pathlib.Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize(
    "name, pictures",
    [
        ("single_file", ["single_file.png"]),
        ("weighted_prompt", ["weight_0.0.png", "weight_2.0.png", "weight_1.0_step_4.png", "weight_1.0_step_9.png"]),
    ],
)
def test_example(name, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert image.size == ((8, 8) if "step" in picture else (64, 64))
