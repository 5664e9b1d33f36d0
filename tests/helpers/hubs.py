"""Hubs that run on this machine: small HTTP servers that speak as much of a hub's protocol as its client needs.

A client runs in its own process, because it reads addresses and caches from the environment when it is imported.
"""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import pytest

from ppsd3.utils import hub

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
