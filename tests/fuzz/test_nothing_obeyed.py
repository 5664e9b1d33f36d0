"""Pictures, adapters, checkpoints and prompts from strangers: nothing is read, written, run or connected to that the
command line did not name."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

from fuzz import corpus
from fuzz.kinds import png
from fuzz.kinds.lora import write as safetensors
from fuzz.runner import PACKAGE, ROOT

HERE = pathlib.Path(__file__).parent
HUB_ID = "evil/model"

Trace = collections.namedtuple("Trace", "line code said events")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What command lines name is in ``named``; what nobody should touch is in ``bait``, whole and usable."""
    tree = tmp_path_factory.mktemp("tree")
    corpus.pipeline(tree / "named" / "model")
    corpus.pipeline(tree / "bait" / "model")
    (tree / "bait" / "prompts.txt").write_text("a blue square\n")
    (tree / "bait" / "adapter.safetensors").write_bytes(adapter())
    (tree / "bait" / "word.safetensors").write_bytes(safetensors({"clip_l": np.ones((1, 16), "f4")}))
    (tree / "bait" / "picture.png").write_bytes(drawn({}))
    (tree / "bait" / "evil.py").write_text("open('/etc/hostname')\n")
    return tree


def adapter(metadata=None):
    key = "transformer.transformer_blocks.0.attn.to_q"
    arrays = {f"{key}.lora_A.weight": np.ones((2, 32), "f4"), f"{key}.lora_B.weight": np.ones((32, 2), "f4")}
    return safetensors(arrays, metadata)


def drawn(settings):
    text = json.dumps({"prompt": "a", "num_inference_steps": 1, "ppsd3_version": "0.1.0", **settings})
    return png.SIGNATURE + b"".join(png.picture([png.chunk(b"tEXt", b"ppsd3\0" + text.encode())]))


def trace(tree, lines):
    """What happens during each of ``lines``."""
    log = tree / "log"
    log.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PPSD3_"))}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT / "tests")]),
        "HF_HOME": str(tree / "hub"),
    }
    environment.update({"PPSD3_TRACE": str(log), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONDONTWRITEBYTECODE": "1"})
    compiler = shutil.which("cc")
    if compiler:
        library = tree / "traced.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "traced.c", "-ldl"], check=True)
        environment["LD_PRELOAD"] = str(library)
    (tree / "here").mkdir(exist_ok=True)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fuzz.traced", log],
        input=json.dumps([[str(part) for part in line] for line in lines]),
        env=environment,
        cwd=tree / "here",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    traces = []
    for entry in log.read_text(errors="surrogateescape").splitlines():
        what, _, name = entry.partition("\t")
        if what == "command":
            traces.append(Trace(json.loads(name), [], [], []))
        elif traces:
            {"exit": traces[-1].code, "said": traces[-1].said}.get(what, traces[-1].events).append((what, name))
    assert len(traces) == len(lines)
    return traces


def touched(tree, events):
    """What of ``events`` is neither of Python and ppsd3, nor of the system, nor in ``named``."""
    own = [ROOT, PACKAGE, sys.prefix, sys.base_prefix, tree / "named", *sysconfig.get_paths().values()]
    own += ["/proc", "/sys", "/dev", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    own += [os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ppsd3")]
    allowed = tuple(os.path.realpath(path) for path in own)
    found = []
    for what, name in events:
        path = os.path.realpath(os.path.join(tree / "here", name))
        inside = any(path == place or path.startswith(place + os.sep) for place in allowed)
        if not what.endswith("open") or (not inside and path != str(tree / "here")):
            found.append((what, name))
    return found


def model(tree, name, changes):
    """A copy of the model in which files are mixed with ``changes`` ({file: entries}); its directory."""
    directory = tree / "named" / name
    corpus.link(tree / "named" / "model", directory)
    for file, entries in changes.items():
        old = json.loads((directory / file).read_text()) if (directory / file).exists() else {}
        corpus.replace(directory / file, json.dumps({**old, **entries}).encode())
    return directory


def hostile_settings(tree):
    """Settings of a PNG that would have files read or written, or a hub asked."""
    bait = tree / "bait"
    yield from ({"model": value} for value in (str(bait / "model"), HUB_ID, str(bait / "adapter.safetensors")))
    yield from (
        {"lora": value}
        for value in ([str(bait / "adapter.safetensors")], [f"{bait}/adapter.safetensors:0.5"], [HUB_ID])
    )
    yield {"textual_inversion": [str(bait / "word.safetensors")]}
    yield {"textual_inversion": [HUB_ID]}
    yield {"prompt_file": str(bait / "prompts.txt")}
    yield {"output": str(bait / "new.png")}
    yield {"preview": str(bait / "previews")}
    yield {"config": HUB_ID}
    yield {"ip_adapter": HUB_ID, "ip_adapter_image": str(bait / "picture.png")}
    yield {"ip_adapter": str(bait / "adapter.safetensors"), "image_encoder": HUB_ID}
    yield {"ip_adapter_image": str(bait / "picture.png")}
    yield {"from_png": str(bait / "picture.png")}
    yield {"callback_on_step_end": str(bait / "evil.py"), "run": "print", "func": "evil"}
    yield {
        "prompt": f"<lora:{bait}/adapter:1> embedding:{bait}/word.safetensors @{bait}/prompts.txt __{bait}/prompts__"
    }
    yield {"prompt": "../../bait/new", "seed": 1}


def hostile_models(tree):
    bait = str(tree / "bait" / "model")
    up = "../../bait/model"
    code = {"auto_map": {"AutoModel": "evil.py--Evil"}, "trust_remote_code": True, "custom_code": "evil"}
    index = "diffusion_pytorch_model.safetensors.index.json"
    yield {
        "model_index.json": {
            "_name_or_path": HUB_ID,
            "custom_pipeline": "evil",
            **{f"_{key}": value for key, value in code.items()},
        }
    }
    yield {"model_index.json": {"vae": [up, "AutoencoderKL"]}}
    yield {"model_index.json": {"vae": ["evil", "Evil"]}}
    yield {"model_index.json": {"vae": ["diffusers", f"{bait}/vae"]}}
    yield {"model_index.json": {f"{up}/vae": ["diffusers", "AutoencoderKL"]}}
    yield {"model_index.json": {bait: ["diffusers", "AutoencoderKL"]}}
    for shard in (f"{up}/vae/diffusion_pytorch_model.safetensors", f"{bait}/vae/diffusion_pytorch_model.safetensors"):
        yield {f"vae/{index}": {"weight_map": {"encoder.conv_in.weight": shard}}}
    for entries in (code, {"_name_or_path": HUB_ID}, {"pretrained_model_name_or_path": bait, "name_or_path": bait}):
        files = ("transformer/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")
        yield from ({file: entries} for file in files)
    keys = ("vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file", "name_or_path", "cache_dir")
    yield {"tokenizer/tokenizer_config.json": dict.fromkeys(keys, f"{bait}/tokenizer/vocab.json")}
    yield {"tokenizer_3/tokenizer_config.json": {"sp_model_kwargs": {"model_file": f"{bait}/tokenizer_3/spiece.model"}}}
    yield {
        "tokenizer/tokenizer.json": {
            "model": {"type": "BPE", "vocab": f"{bait}/tokenizer/vocab.json", "merges": "evil"}
        }
    }


def hostile_adapters(tree):
    bait = str(tree / "bait" / "adapter.safetensors")
    for value in (bait, HUB_ID, "../../bait/adapter.safetensors"):
        settings = {
            "transformer.base_model_name_or_path": value,
            "transformer.auto_mapping": {"parent_library": "evil"},
        }
        settings["transformer.corda_config"] = {"cache_file": value, "covariance_file": value}
        yield {
            "lora_adapter_metadata": json.dumps(settings),
            "ss_sd_model_name": value,
            "modelspec.architecture": value,
        }


def lines(tree):
    """The command lines that take what strangers made."""
    named, sound = tree / "named", tree / "named" / "model"
    small = [*corpus.SMALL_OPTIONS, "--output", named / "new.png"]
    made = []
    for number, settings in enumerate(hostile_settings(tree)):
        file = named / f"{number}.png"
        file.write_bytes(drawn(settings))
        made += [["generate", "--from-png", file, "--model", sound, *small], ["info", file]]
    for number, settings in enumerate(
        [{"image": str(tree / "bait" / "picture.png"), "strength": 0.9}, {"mask_image": "evil"}]
    ):
        file = named / f"image-{number}.png"
        file.write_bytes(drawn({**settings, "command": "img2img"}))
        made += [["img2img", "--from-png", file, *more, "--model", sound, *small] for more in ([], ["--image", file])]
    for number, changes in enumerate(hostile_models(tree)):
        directory = model(tree, f"model-{number}", changes)
        made += [["generate", "a", "--model", directory, *small], ["info", directory]]
        made += [["convert", directory, named / f"converted-{number}"]] * (number % 3 == 0)
    for number, metadata in enumerate(hostile_adapters(tree)):
        file = named / f"adapter-{number}.safetensors"
        file.write_bytes(adapter(metadata))
        made += [["generate", "a", "--model", sound, "--lora", file, *small], ["info", file]]
    prompts = named / "prompts.txt"
    bait = tree / "bait"
    prompts.write_text(
        f"--output {bait}/new.png\n../../bait/new\n/etc/passwd\n@{bait}/prompts.txt\n__{bait}/prompts__\n"
        f"<lora:{bait}/adapter:1> (embedding:{bait}/word.safetensors:1.2)\nfile://{bait}/prompts.txt\n"
        f"$(touch {bait}/new)\n"
    )
    (named / "pictures").mkdir()
    weighted = ["--prompt-weighting", *corpus.SMALL_OPTIONS, "--output", named / "pictures"]
    return [*made, ["generate", "--prompt-file", prompts, "--model", sound, *weighted]]


def test_nothing_is_touched_that_the_command_line_does_not_name(tree):
    before = {path: path.stat().st_mtime_ns for path in (tree / "bait").rglob("*")}
    traces = trace(tree, lines(tree))
    obeyed = {" ".join(found.line): touched(tree, found.events) for found in traces}
    assert not any(obeyed.values()), "\n".join(f"{line}\n    {what}" for line, what in obeyed.items() if what)
    assert {path: path.stat().st_mtime_ns for path in (tree / "bait").rglob("*")} == before
    assert not list((tree / "here").iterdir())
    assert traces[-1].code == [("exit", "0")]
    assert len(list((tree / "named" / "pictures").iterdir())) == 8
    assert sum(found.code == [("exit", "0")] for found in traces) > len(traces) / 3  # else little was tried


def test_what_the_command_line_names_is_seen(tree):
    """The trace shows what Python reads, what native code reads, a connection, and what is written."""
    bait, sound = tree / "bait", tree / "named" / "model"
    adapter_file, new = bait / "adapter.safetensors", bait / "seen.png"
    line = [
        "generate",
        "--prompt-file",
        bait / "prompts.txt",
        "--model",
        sound,
        "--lora",
        adapter_file,
        *corpus.SMALL_OPTIONS,
    ]
    drawing, asking = trace(tree, [[*line, "--output", new], ["info", HUB_ID]])
    events = touched(tree, drawing.events)
    assert ("open", str(new)) in events
    for how in ("open", "native open") if shutil.which("cc") else ("open",):
        seen = {os.path.basename(name) for what, name in events if what == how}
        assert {"prompts.txt", "adapter.safetensors"} <= seen
    assert "connect" in {what for what, _ in touched(tree, asking.events)}
    new.unlink()
