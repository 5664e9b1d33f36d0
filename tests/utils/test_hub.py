"""Where checkpoints come from: directories, the bundled name, and a hub that runs on this machine."""

import os
import re
import sys

import pytest
from helpers.hubs import COMMIT, INDEX, SD3, FakeHub, ask, downloaded, served

import ppsd3
from ppsd3.utils import hub
from ppsd3.utils.errors import CheckpointNotFoundError, InputError
from ppsd3.utils.hub import resolve_checkpoint, select_files
from ppsd3.utils.repositories import HuggingFaceRepository
from ppsd3.utils.weight_names import available_variants, index_file, parse_weight_name, shard_file, weights_file


class TestNames:
    @pytest.mark.parametrize("variant", [None, "fp16", "bf16", "non_ema"])
    def test_what_is_written_is_recognised(self, variant):
        for stem in ("diffusion_pytorch_model", "model"):
            assert parse_weight_name(weights_file(stem, variant)) == (stem, variant, "single")
            assert parse_weight_name(shard_file(stem, 1, 12, variant)) == (stem, variant, "shard")
            assert parse_weight_name(index_file(stem, variant)) == (stem, variant, "index")

    def test_spelling(self):
        assert weights_file("model", "fp16") == "model.fp16.safetensors"
        assert shard_file("model", 1, 2, "fp16") == "model.fp16-00001-of-00002.safetensors"
        assert index_file("model", "fp16") == "model.safetensors.index.fp16.json"
        assert parse_weight_name("diffusion_pytorch_model-00001-of-00002.fp16.safetensors").variant == "fp16"

    @pytest.mark.parametrize("name", ["config.json", "sd3_medium.safetensors", "model.bin", "pytorch_x.safetensors"])
    def test_other_files_are_not(self, name):
        assert parse_weight_name(name) is None

    def test_available_variants(self):
        assert available_variants(["model.safetensors", "model.fp16.safetensors", "x.txt"]) == [None, "fp16"]


class TestSelect:
    components = [name for name, entry in INDEX.items() if isinstance(entry, list) and entry[-1]]

    def test_one_variant_and_nothing_else(self):
        plain, half = select_files(SD3, self.components, None), select_files(SD3, self.components, "fp16")
        small = {name for name in SD3 if name.endswith((".txt", ".model", "config.json", "vocab.json"))}
        assert set(plain) - small == {
            "text_encoder/model.safetensors",
            "text_encoder_3/model-00001-of-00002.safetensors",
            "text_encoder_3/model-00002-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.json",
            "transformer/diffusion_pytorch_model.safetensors",
        }
        assert small <= set(plain) and small <= set(half)
        weights = set(half) - small
        assert len(weights) == 5 and all("fp16" in name for name in weights)

    def test_wrong_variant_names_component_and_remedy(self):
        with pytest.raises(CheckpointNotFoundError, match=r"text_encoder .*bf16.*variant=None, variant='fp16'"):
            select_files(SD3, self.components, "bf16")

    def test_plain_weights_where_a_component_lacks_the_variant(self):
        files = ["vae/model.safetensors", "text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors"]
        assert select_files(files, ["vae", "text_encoder"], "fp16") == files[:2]

    def test_pickle_only(self):
        with pytest.raises(CheckpointNotFoundError, match=r"vae.*pickle.*x.bin"):
            select_files(["vae/config.json", "vae/x.bin"], ["vae"], None)

    def test_root_component(self):
        files = ["config.json", "diffusion_pytorch_model.safetensors", "sub/config.json", "picture.png"]
        assert select_files(files, [""], None) == files[:2]


class TestLocal:
    def test_directory_is_itself(self, tmp_path):
        assert resolve_checkpoint(tmp_path) == str(tmp_path)

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "sd3").mkdir()
        assert resolve_checkpoint("~/sd3") == str(tmp_path / "sd3")

    @pytest.mark.parametrize("path", ["./no", "/none/at/all", "a/b/c", "none", "../a", "a\\b", "a/", "", "~/no"])
    def test_paths_never_reach_the_hub(self, path, monkeypatch, tmp_path):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        monkeypatch.setattr(hub, "_fetch", lambda *args: pytest.fail("the hub was asked"))
        with pytest.raises(CheckpointNotFoundError, match="Check the path") as caught:
            resolve_checkpoint(path)
        assert os.path.expanduser(path) in str(caught.value)

    @pytest.mark.parametrize("given", [None, 3, {"a": 1}, b"shapes"])
    @pytest.mark.parametrize("resolve", [resolve_checkpoint, hub.resolve_file])
    def test_no_path(self, given, resolve):
        with pytest.raises(InputError, match=f"pretrained_model_.* is of the type {type(given).__name__}"):
            resolve(given)

    def test_file(self, tmp_path):
        (tmp_path / "sd3.safetensors").write_bytes(b"12345678{}")
        with pytest.raises(CheckpointNotFoundError, match="diffusers format"):
            resolve_checkpoint(tmp_path / "sd3.safetensors")

    @pytest.mark.parametrize("page", ["", "/", "/tree/main", "/tree/main/vae"])
    def test_page(self, page):
        says = r"is a page. Pass the id of the repository: 'org/name'" + (", subfolder='vae'" if "vae" in page else "")
        with pytest.raises(CheckpointNotFoundError, match=re.escape(says)):
            resolve_checkpoint(f"https://huggingface.co/org/name{page}")

    def test_bundled(self, tmp_path, monkeypatch):
        monkeypatch.setitem(hub.BUNDLED, "shapes", str(tmp_path / "bundle"))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointNotFoundError, match="shapes"):
            resolve_checkpoint("shapes")
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "model_index.json").write_text("{}")
        assert resolve_checkpoint("shapes") == str(tmp_path / "bundle")
        (tmp_path / "shapes").mkdir()
        assert resolve_checkpoint("shapes") == str(tmp_path / "bundle"), "an unrelated directory does not shadow it"
        (tmp_path / "shapes" / "model_index.json").write_text("{}")
        assert resolve_checkpoint("shapes") == "shapes"


@pytest.fixture(scope="module")
def endpoint():
    yield from served(FakeHub)


def test_pipeline_fetches_one_variant_then_works_offline(tmp_path, endpoint):
    FakeHub.requested.clear()
    options = {"variant": "fp16", "skip_components": ["text_encoder_3", "tokenizer_3"]}
    (path,) = ask(tmp_path, endpoint, ("org/sd3", options))
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
    assert downloaded(path) == expected == sorted(FakeHub.requested)

    offline = {"local_files_only": True}
    cached = ("org/sd3", offline), ("org/sd3", {"subfolder": "transformer", **offline})
    assert ask(tmp_path, endpoint, *cached) == [path, path]
    assert ask(tmp_path, endpoint, ("org/sd3", {}), HF_HUB_OFFLINE="1") == [path]
    assert ask(tmp_path, "http://127.0.0.1:9", ("org/sd3", {})) == [path], "unreachable hub: the cache serves"
    assert sorted(FakeHub.requested) == expected, "nothing was fetched twice"


def test_component_alone_and_own_cache(tmp_path, endpoint):
    cache = tmp_path / "elsewhere"
    (path,) = ask(tmp_path, endpoint, ("org/sd3", {"subfolder": "transformer", "cache_dir": str(cache)}))
    assert path.startswith(str(cache))
    assert downloaded(path) == ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]


def test_errors_say_what_was_tried_and_what_to_do(tmp_path, endpoint):
    missing, gated, revision, variant, subfolder, offline = ask(
        tmp_path,
        endpoint,
        ("org/missing", {}),
        ("org/gated", {}),
        ("org/sd3", {"revision": "nobranch"}),
        ("org/sd3", {"variant": "bf16"}),
        ("org/sd3", {"subfolder": "unet"}),
        ("org/other", {"local_files_only": True}),
    )
    assert missing.startswith("error") and f"{endpoint}/org/missing" in missing and "local directory" in missing
    assert "gated" in gated and "hf auth login" in gated and f"{endpoint}/org/gated" in gated
    assert "'nobranch'" in revision
    assert "org/sd3" in variant and "variant='bf16'" in variant and "variant='fp16'" in variant
    assert "'unet'" in subfolder and "subfolder" in subfolder
    assert "org/other" in offline and str(tmp_path) in offline and "offline" in offline
    (unreachable,) = ask(tmp_path, "http://127.0.0.1:9", ("org/other", {}))
    assert "cannot be reached" in unreachable and "HF_ENDPOINT" in unreachable


def test_a_single_file_by_its_link(tmp_path, endpoint):
    name = "org/sd3/text_encoders/clip_l.safetensors"
    path, same, cached, mirrored, *errors = ask(
        tmp_path,
        endpoint,
        ("https://huggingface.co/org/sd3/blob/main/text_encoders/clip_l.safetensors", {}),
        (name, {}),
        (name, {"local_files_only": True}),
        ("https://mirror.example/org/sd3/resolve/main/sd3_medium.safetensors?download=true", {}),
        ("org/sd3/sd3_medium_incl_clips_t5xxlfp8.safetensors", {"local_files_only": True}),
        ("org/gated/x.safetensors", {}),
        ("org/sd3/nowhere.safetensors", {}),
        ("nowhere.safetensors", {}),
        function="resolve_file",
    )
    assert path.endswith(f"{COMMIT}/text_encoders/clip_l.safetensors") and os.path.isfile(path)
    assert path == same == cached and mirrored.endswith("sd3_medium.safetensors")
    parts = ("in the cache", "is gated", "does not give a file", "There is no file nowhere.safetensors")
    assert len(errors) == len(parts) and all(part in error for part, error in zip(parts, errors)), errors
    calls = (name, {}), ("org/other/x.safetensors", {})
    offline, error = ask(tmp_path, "http://127.0.0.1:9", *calls, function="resolve_file")
    assert offline == path and "cannot be reached" in error


def test_the_chosen_hub(tmp_path, monkeypatch, endpoint):
    (path,) = ask(tmp_path, endpoint, ("huggingface:org/sd3", {"subfolder": "vae"}), PPSD3_HUB="modelscope")
    assert path.startswith("error") and "'vae'" in path and "org/sd3 has no files" in path
    monkeypatch.setenv("PPSD3_HUB", "elsewhere")
    with pytest.raises(InputError, match="PPSD3_HUB=elsewhere names no hub"):
        resolve_checkpoint("org/sd3")
    with pytest.raises(InputError, match=r"from_hf_hub=True.*huggingface:org/name"):
        ppsd3.AutoencoderKL.from_pretrained("org/sd3", from_hf_hub=True)
    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it was not installed
    with pytest.raises(InputError, match=r"pip install 'ppsd3\[modelscope\]'"):
        resolve_checkpoint("modelscope:org/sd3")


def test_force_download(tmp_path, endpoint):
    FakeHub.requested.clear()
    name, options = "org/sd3/text_encoders/clip_l.safetensors", {"force_download": True}
    ask(tmp_path, endpoint, (name, {}), (name, {}), (name, options), function="resolve_file")
    assert FakeHub.requested == ["text_encoders/clip_l.safetensors"] * 2
    ask(tmp_path, endpoint, *[("org/sd3", {"subfolder": "transformer", **o}) for o in ({}, {}, options)])
    assert FakeHub.requested.count("transformer/config.json") == 2


def test_a_configuration_alone(tmp_path, endpoint):
    FakeHub.requested.clear()
    options = {"file": "config.json", "subfolder": "transformer"}
    path, cached, missing = ask(
        tmp_path,
        endpoint,
        ("org/sd3", options),
        ("org/sd3", {**options, "local_files_only": True}),
        ("org/sd3", {"file": "config.json", "subfolder": "unet"}),
        function="resolve_small_file",
    )
    assert path == cached and path.endswith(f"{COMMIT}/transformer/config.json") and os.path.isfile(path)
    assert FakeHub.requested == ["transformer/config.json"] and "org/sd3" in missing and missing.startswith("error")


@pytest.mark.parametrize(
    "status, says", [(401, "may not be read.*answers 401.*licence"), (403, "answers 403"), (502, "reached")]
)
def test_what_the_hub_answers(status, says):
    from huggingface_hub import utils

    class Answer:
        status_code, headers, request = status, {}, None

    error = utils.HfHubHTTPError.__new__(utils.HfHubHTTPError)
    error.args, error.response = ("refused",), Answer

    def ask():
        with HuggingFaceRepository("org/name")._explained_errors():
            raise error

    with pytest.raises(CheckpointNotFoundError, match=f"org/name.*{says}"):
        ask()
