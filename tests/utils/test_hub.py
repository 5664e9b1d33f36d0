"""Where checkpoints come from: directories, the bundled name, and a hub that runs on this machine.

The hub is a small HTTP server that speaks as much of the protocol as huggingface_hub needs. The client runs in its
own process, because huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported.
"""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from ppsd3.utils import hub
from ppsd3.utils.errors import CheckpointNotFoundError
from ppsd3.utils.hub import resolve_checkpoint, select_files
from ppsd3.utils.weight_names import available_variants, index_file, parse_weight_name, shard_file, weights_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SD3 = [
    "README.md",
    "model_index.json",
    "sd3_medium.safetensors",
    "sd3_medium_incl_clips_t5xxlfp8.safetensors",
    "text_encoders/clip_l.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder_3/config.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "text_encoder_3/model.fp16-00002-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.json",
    "text_encoder_3/model.safetensors.index.fp16.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer_3/spiece.model",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
]
INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "image_encoder": [None, None],
}


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
    def test_paths_never_reach_the_hub(self, path, monkeypatch):
        monkeypatch.setattr(hub, "_fetch", lambda *args: pytest.fail("the hub was asked"))
        with pytest.raises(CheckpointNotFoundError, match="Check the path") as caught:
            resolve_checkpoint(path)
        assert os.path.expanduser(path) in str(caught.value)

    def test_file(self, tmp_path):
        (tmp_path / "sd3.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointNotFoundError, match="diffusers format"):
            resolve_checkpoint(tmp_path / "sd3.safetensors")

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


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Serves org/sd3; org/gated and org/missing answer as the hub does for such repositories."""

    requested = []

    def log_message(self, *args):
        pass

    def content(self, name):
        return json.dumps(INDEX if name == "model_index.json" else {"file": name}).encode()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/missing"):
            return self.answer(404, X_Error_Code="RepoNotFound")
        if path.startswith("/api/models/org/sd3/revision/nobranch"):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if "/tree/" in path:
            tree = [{"type": "file", "path": f, "size": len(self.content(f)), "oid": "0" * 40} for f in SD3]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        if path.startswith("/api/models/"):
            files = {"sha": COMMIT, "siblings": [{"rfilename": f} for f in SD3]}
            about = {"private": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "library_name": None}
            info = {"id": "org/sd3", "modelId": "org/sd3", **files, **about}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        if path.startswith("/org/gated/resolve/"):
            return self.answer(403, X_Error_Code="GatedRepo")
        if path.startswith("/org/sd3/resolve/"):
            name = path.split("/", 5)[5]
            if name not in SD3:
                return self.answer(404, X_Error_Code="EntryNotFound")
            if self.command == "GET":
                self.requested.append(name)
            etag = hashlib.sha256(name.encode()).hexdigest()
            return self.answer(200, self.content(name), X_Repo_Commit=COMMIT, ETag=f'"{etag}"')
        return self.answer(404)

    do_HEAD = do_GET  # noqa: N815, http.server's name


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def ask(home, endpoint, *calls, function="resolve_checkpoint", **environment):
    """Runs ``function`` of ``hub`` once for each (args, kwargs) of ``calls`` in one new process: paths or messages."""
    pytest.importorskip("huggingface_hub")
    code = """
import json, sys, time, types
time.sleep = lambda seconds: None  # which huggingface_hub does for half a minute before it gives up
package = types.ModuleType("ppsd3"); package.__path__ = [sys.argv[1]]; sys.modules["ppsd3"] = package  # without Paddle
from ppsd3.utils.errors import CheckpointNotFoundError
from ppsd3.utils import hub
for name, options in json.loads(sys.argv[2]):
    try:
        print(json.dumps(getattr(hub, sys.argv[3])(name, **options)))
    except CheckpointNotFoundError as error:
        print(json.dumps("error: " + str(error)))
"""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    package = os.path.dirname(os.path.dirname(hub.__file__))
    result = subprocess.run(
        [sys.executable, "-c", code, package, json.dumps(calls), function],
        env={**keep, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def downloaded(directory):
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return sorted(os.path.relpath(path, directory) for path in paths)


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
