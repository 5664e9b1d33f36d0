"""The short examples run as they stand."""

import pathlib
import runpy

import pytest
from PIL import Image

pytestmark = pytest.mark.docs

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
PICTURES = {
    "text_to_image": ["text_to_image.png"],
    "image_to_image": ["before.png", "image_to_image.png"],
    "inpainting": ["before.png", "inpainting.png"],
    "control": ["silhouettes.png", "control_one.png", "control_other.png"],
    "samplers": [f"sampler_{name}.png" for name in ("euler", "heun", "dpm", "unipc")],
    "guidance": ["guidance_projected.png", "guidance_rescaled_perturbed.png"],
    "step_caching": [f"{name}.png" for name in ("all_steps", "TaylorCache", "FirstBlockCache", "EasyCache")],
    "low_memory": ["low_memory_0.png", "low_memory_1.png"],
    "single_file": ["single_file.png"],
    "lora": ["lora_0.0.png", "lora_1.0.png"],
    "ip_adapter": ["ip_adapter_0.0.png", "ip_adapter_0.5.png", "ip_adapter_1.0.png"],
    "textual_inversion": ["textual_inversion_before.png", "textual_inversion_after.png"],
    "weighted_prompt": ["weight_0.0.png", "weight_2.0.png", "weight_1.0_step_4.png", "weight_1.0_step_9.png"],
}


# Those that train, and what makes them short here.
TRAINING = {
    "train_lora": (["--steps", "2"], ["train_lora.png"]),
    "train_dreambooth": (["--steps", "2", "--class-images", "1"], ["dreambooth_sks.png", "dreambooth_red.png"]),
    "train_full": (["--steps", "2", "--pictures", "8"], ["train_full_before.png", "train_full_after.png"]),
    "train_controlnet": (["--steps", "2", "--pictures", "8"], ["train_controlnet.png"]),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_example(name, tmp_path, monkeypatch):
    arguments, pictures = TRAINING[name]
    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 50
    monkeypatch.setattr("sys.argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert image.size == (64, 64)


@pytest.mark.parametrize("name", PICTURES)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 30
    runpy.run_path(str(path), run_name="__main__")
    for picture in PICTURES[name]:
        with Image.open(tmp_path / picture) as image:
            assert image.size == ((8, 8) if "step_" in picture and name == "weighted_prompt" else (64, 64))
