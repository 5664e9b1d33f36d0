"""Where checkpoints come from: directories, the bundled name, and a hub that runs on this machine.

The hub is a small HTTP server that speaks as much of the protocol as huggingface_hub needs. The client runs in its
own process, because huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported.
"""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse

import pytest

import ppsd3
from ppsd3.utils import hub
from ppsd3.utils.errors import CheckpointNotFoundError, InputError
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


class FakeModelScope(FakeHub):
    """The same repository as ModelScope's interface shows it; org/gated and org/missing answer as it does for such."""

    requested = []

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = {key: values[0] for key, values in urllib.parse.parse_qs(query).items()}
        if path == "/api/v1/models/org/gated/repo/files":
            return self.answer_json(403, {"Code": 403, "Success": False, "Message": "no permission"})
        known = path.startswith("/api/v1/models/org/sd3/") and asked.get("Revision") in ("master", "v1")
        if known and path.endswith("/repo/files"):
            files = [
                {"Path": f, "Name": f.split("/")[-1], "Type": "blob", "Size": len(self.content(f)), "Sha256": ""}
                for f in SD3
            ]
            folder = {"Path": "transformer", "Name": "transformer", "Type": "tree", "Size": 0}
            return self.answer_json(200, {"Code": 200, "Success": True, "Data": {"Files": [folder, *files]}})
        if known and path.endswith("/repo") and asked["FilePath"] in SD3:
            if self.command == "GET":
                self.requested.append(asked["FilePath"])
            return self.answer(200, self.content(asked["FilePath"]))
        return self.answer_json(404, {"Code": 10010205001, "Success": False, "Message": "not found"})

    def answer_json(self, status, content):
        return self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

    do_HEAD = do_GET  # noqa: N815, http.server's name


def served(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def endpoint():
    yield from served(FakeHub)


@pytest.fixture(scope="module")
def modelscope():
    yield from served(FakeModelScope)


def ask(home, endpoint, *calls, function="resolve_checkpoint", client="huggingface_hub", **environment):
    """Runs ``function`` of ``hub`` once for each (args, kwargs) of ``calls`` in one new process: paths or messages."""
    pytest.importorskip(client)
    code = """
import json, sys, time, types
time.sleep = lambda seconds: None  # which huggingface_hub does for half a minute before it gives up
package = types.ModuleType("ppsd3"); package.__path__ = [sys.argv[1]]; sys.modules["ppsd3"] = package  # without Paddle
from ppsd3.utils.errors import CheckpointNotFoundError, InputError
from ppsd3.utils import hub
for name, options in json.loads(sys.argv[2]):
    try:
        print(json.dumps(getattr(hub, sys.argv[3])(name, **options)))
    except (CheckpointNotFoundError, InputError) as error:
        print(json.dumps("error: " + str(error)))
"""
    ours = ("HF_", "MODELSCOPE_", "PPSD3_")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(ours) and "proxy" not in key.lower()}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    if client == "modelscope":
        settings = {
            "MODELSCOPE_CACHE": str(home / "cache"),
            "MODELSCOPE_HOME": str(home),
            "MODELSCOPE_ENDPOINT": endpoint,
        }
    package = os.path.dirname(os.path.dirname(hub.__file__))
    result = subprocess.run(
        [sys.executable, "-c", code, package, json.dumps(calls), function],
        env={**keep, **settings, **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('"')]


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
