"""``ppsd3 info``: what a checkpoint holds, read from headers."""

import json
import shutil

import pytest
from helpers import tiny

import ppsd3
from ppsd3.cli import info
from ppsd3.cli.main import main


def test_lists_components(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(info, "_free_memory", lambda: 10**9)
    assert main(["info", str(tiny_checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "StableDiffusion3Pipeline" in shown and "float32" in shown
    for name in ("transformer", "vae", "text_encoder_3", "tokenizer_2", "scheduler"):
        assert f"\n{name} " in shown
    assert "fits" in shown and "does not fit" not in shown
    assert "Paddle" in shown and "CPU threads" in shown and "native CPU kernels: " in shown


def test_counts_match_the_models(tiny_checkpoint):
    pipe = tiny.make_pipeline()
    for name in ("transformer", "vae", "text_encoder", "text_encoder_3"):
        model = getattr(pipe, name)
        part = info.read_component(str(tiny_checkpoint), name, type(model).__name__)
        tensors = [tensor for key, tensor in model.state_dict().items() if key not in model._tied_keys]
        assert part.values == sum(int(tensor.size) for tensor in tensors)
        assert part.bytes_on_disk > 4 * part.values and set(part.dtypes) == {"float32"}


def test_does_not_fit(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(info, "_free_memory", lambda: 1000)
    main(["info", str(tiny_checkpoint)])
    assert "does not fit" in capsys.readouterr().out


def test_variant(tiny_checkpoint, tmp_path, capsys):
    ppsd3.DiffusionPipeline.from_pretrained(tiny_checkpoint).to("float16").save_pretrained(tmp_path, variant="fp16")
    for arguments in ([], ["--variant", "fp16"]):
        assert main(["info", str(tmp_path), *arguments]) == 0
        assert "float16" in capsys.readouterr().out
    assert main(["info", str(tmp_path), "--variant", "bf16"]) == 2
    assert "bf16" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["class", "shard", "directory"])
def test_damaged(tiny_checkpoint, tmp_path, capsys, damage):
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    if damage == "class":
        path = directory / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "vae": ["diffusers", "AutoencoderDC"]}))
    elif damage == "shard":
        file = directory / "vae" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    else:
        shutil.rmtree(directory / "vae")
    assert main(["info", str(directory)]) == 2
    assert "vae" in capsys.readouterr().err
