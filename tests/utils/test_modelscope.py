"""Checkpoints from ModelScope, by its own client, which needs Python 3.10: see ``tests/conftest.py``."""

import os
import re

import pytest
from helpers.hubs import FakeModelScope, ask, downloaded, served


@pytest.fixture(scope="module")
def modelscope():
    yield from served(FakeModelScope)


def test_modelscope_fetches_one_variant_then_works_offline(tmp_path, modelscope):
    FakeModelScope.requested.clear()
    options = {"variant": "fp16", "skip_components": ["text_encoder_3", "tokenizer_3"]}
    path, same = ask(
        tmp_path, modelscope, ("modelscope:org/sd3", options), ("modelscope:org/sd3", options), client="modelscope"
    )
    expected = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert path == same and set(expected) <= set(downloaded(path)) and path.startswith(str(tmp_path))
    assert sorted(FakeModelScope.requested) == expected, "nothing else, and nothing twice"

    offline = {"local_files_only": True}
    cached = ("modelscope:org/sd3", offline), ("modelscope:org/sd3", {"subfolder": "transformer", **offline})
    assert ask(tmp_path, modelscope, *cached, client="modelscope") == [path, path]
    chosen = {"client": "modelscope", "PPSD3_HUB": "modelscope"}
    assert ask(tmp_path, modelscope, ("org/sd3", {}), HF_HUB_OFFLINE="1", **chosen) == [path]
    assert ask(tmp_path, "http://127.0.0.1:9", ("org/sd3", {}), **chosen) == [path], "unreachable hub: the cache serves"
    assert sorted(FakeModelScope.requested) == expected


def test_modelscope_component_revision_cache_and_files(tmp_path, modelscope):
    cache = tmp_path / "elsewhere"
    options = {"subfolder": "transformer", "cache_dir": str(cache), "revision": "v1", "token": "ms-1"}
    (path,) = ask(tmp_path, modelscope, ("modelscope:org/sd3", options), client="modelscope")
    assert path.startswith(str(cache))
    files = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}
    assert files <= set(downloaded(path)) and "vae" not in str(downloaded(path))
    name = "modelscope:org/sd3/text_encoders/clip_l.safetensors"
    links = (
        name,
        "https://www.modelscope.cn/models/org/sd3/resolve/master/text_encoders/clip_l.safetensors",
        "https://modelscope.cn/models/org/sd3/file/view/master/text_encoders%2Fclip_l.safetensors?status=2",
    )
    calls = [(link, {}) for link in links] + [(name, {"local_files_only": True})]
    found = ask(tmp_path, modelscope, *calls, client="modelscope", function="resolve_file")
    assert len(set(found)) == 1 and os.path.isfile(found[0]) and found[0].endswith("text_encoders/clip_l.safetensors")


def test_modelscope_errors_say_what_to_do(tmp_path, modelscope):
    calls = {
        "does not exist at .*/models/org/missing, or is private": ("modelscope:org/missing", {}),
        "may not be read.*modelscope login.*MODELSCOPE_API_TOKEN": ("modelscope:org/gated", {}),
        "with the revision 'nobranch'": ("modelscope:org/sd3", {"revision": "nobranch"}),
        "variant='bf16'.*variant='fp16'": ("modelscope:org/sd3", {"variant": "bf16"}),
        "has no files in 'unet'": ("modelscope:org/sd3", {"subfolder": "unet"}),
        "org/other.*offline": ("modelscope:org/other", {"local_files_only": True}),
        "no force_download.*scan-cache": ("modelscope:org/sd3", {"force_download": True}),
        "AI Studio.*modelscope:org/name.*Hugging Face": ("aistudio:org/sd3", {}),
        "gitee: names no hub; the hubs are huggingface and modelscope": ("gitee:org/sd3", {}),
    }
    answers = ask(tmp_path, modelscope, *calls.values(), client="modelscope")
    assert len(answers) == len(calls)
    for pattern, answer in zip(calls, answers):
        assert answer.startswith("error: ") and re.search(pattern, answer), (pattern, answer)
    (unreachable,) = ask(tmp_path, "http://127.0.0.1:9", ("modelscope:org/other", {}), client="modelscope")
    assert "cannot be reached" in unreachable and "MODELSCOPE_ENDPOINT" in unreachable
