"""Programs that make the calls of ppdiffusers' examples run on ppsd3 after a change of the import, and draw the same.

Each is run by both libraries in processes of their own, on a directory that ppdiffusers has written. They leave T5's
tokens to the library: as many as CLIP's there, 256 here. So pictures differ a little; test_pipelines.py has them equal.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

pytestmark = pytest.mark.interop

HERE = pathlib.Path(__file__).parent
TESTS = HERE.parent
PROGRAMS = HERE / "programs"
# Paddle Inference cannot run ppdiffusers' transformer on this Paddle without a GPU.
OURS_ALONE = {"deploy": "text_to_image"}


@pytest.fixture(scope="module")
def model(theirs, tmp_path_factory):
    """Directory of the bundled model as ppdiffusers saves it."""
    directory = tmp_path_factory.mktemp("programs") / "model"
    theirs.save_pretrained(str(directory), safe_serialization=True)
    return directory


@pytest.fixture(scope="module")
def lora(ppdiffusers, theirs, tmp_path_factory):
    """Directory of a LoRA as ppdiffusers saves it."""
    directory = tmp_path_factory.mktemp("lora")
    rng = np.random.default_rng(0)
    layers = {}
    for name, layer in theirs.transformer.named_sublayers():
        if name.endswith(("attn.to_q", "attn.to_v", "attn.add_k_proj")):
            width, out = layer.weight.shape  # Paddle's layout
            layers[f"{name}.lora_A.weight"] = rng.standard_normal([width, 4]).astype("float32") * 0.1
            layers[f"{name}.lora_B.weight"] = rng.standard_normal([4, out]).astype("float32") * 0.1
    layers = {name: paddle.to_tensor(value) for name, value in layers.items()}
    theirs.save_lora_weights(str(directory), transformer_lora_layers=layers)
    return directory


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    """(library, program, *arguments) -> the picture, as an array."""
    pictures = {}

    def draw(library, program, *arguments):
        key = library, program, *arguments
        if key not in pictures:
            directory = tmp_path_factory.mktemp(program)
            command = [sys.executable, str(TESTS / "helpers" / "interop.py"), library, str(PROGRAMS / f"{program}.py")]
            command += [str(model), "picture.png", *map(str, arguments)]
            paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
            environment = {**os.environ, "PYTHONPATH": paths, "USE_PEFT_BACKEND": "True"}  # for ppdiffusers' LoRA
            run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr[-3000:]
            pictures[key] = np.asarray(Image.open(directory / "picture.png")).astype(int)
        return pictures[key]

    return draw


@pytest.mark.parametrize("program", sorted(path.stem for path in PROGRAMS.glob("*.py")))
def test_program(drawn, program, request):
    arguments = [request.getfixturevalue("lora")] if program == "dreambooth_lora" else []
    expected = drawn("ppdiffusers", OURS_ALONE.get(program, program), *arguments)
    picture = drawn("ppsd3", program, *arguments)
    assert expected.std() > 10
    assert np.abs(picture - expected).mean() < 1.5
