"""A server in a thread of the test, over a pipeline, and hostile requests for it."""

import base64
import contextlib
import io
import json
import random
import socket
import struct
import threading
import time
import zlib

from PIL import Image

from ppsd3.serving import Catalog, Engine, Limits, ModelChoice
from ppsd3.serving.models import Models
from ppsd3.serving.service import Service


class Served:
    """Attributes: ``url``, ``port``, ``engine``, ``service``."""

    def __init__(self, port, engine, service):
        self.port, self.engine, self.service, self.url = port, engine, service, f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def served(pipe, models=None, key_file=None, header_seconds=2.0, body_seconds=2.0, directory=None, **options):
    """A server on a free port, as ``ppsd3 serve`` starts it; ``options`` are the engine's."""
    import uvicorn

    from ppsd3.serving.guard import MOST_HEADER_BYTES, guarded_protocol
    from ppsd3.serving.server import make_app

    choice = ModelChoice("tiny")
    limits = options.pop("limits", Limits(side=256, steps=30, pictures=8, seconds=60))
    engine = Engine(choice, limits, models=models or Models(lambda choice, quiet: pipe), **options)
    service = Service(engine, Catalog(choice, directory, hub_cache=False), key_file)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(service, 1 << 20, body_seconds),
        http=guarded_protocol(header_seconds),
        ws="none",
        log_level="error",
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    engine.start().result(60)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Served(listening.getsockname()[1], engine, service)
    finally:
        server.should_exit = True
        thread.join(30)
        engine.close()


def png(width=16, height=16, mode="RGB", colour=0):
    """Bytes of a PNG file."""
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, format="PNG")
    return file.getvalue()


def bomb(side=60_000):
    """A PNG of some hundred bytes that says it has ``side`` x ``side`` pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


class Hostile:
    """Seeded requests of a stranger, as bytes for a socket.

    Args:
        canary: path of a file that must not be read.
    """

    def __init__(self, seed, canary):
        self.random, self.canary = random.Random(seed), str(canary)

    def request(self):
        """(kind, bytes to send, seconds between its pieces)."""
        kind = self.random.choice(
            ("json", "json", "json", "broken", "upload", "upload", "line", "headers", "length", "slow", "path", "noise")
        )
        content, pause = getattr(self, "_" + kind)(), 0.0
        if kind == "slow":
            pause = 0.6
        return kind, content, pause

    def _value(self, depth=0):
        r = self.random
        values = [
            None, True, -1, 0, 1, 10**30, -(10**400), 0.5, 1e308, float("nan"), "", "x", "\x00", "\ud800", "9" * 5000,
            "../" * 20 + "etc/passwd", self.canary, f"file://{self.canary}", "http://127.0.0.1:1/x", "64x64",
            "1024x" * 500, [], {}, "data:image/png;base64,AAAA", base64.b64encode(bomb()).decode(),
            base64.b64encode(png()).decode(), "{{7*7}}", "' OR 1=1 --", "prompt" * 3000,
        ]  # fmt: skip
        if depth < 3 and r.random() < 0.15:
            return [self._value(depth + 1) for _ in range(r.randrange(4))]
        if depth < 3 and r.random() < 0.1:
            return {r.choice(("a", "sd_model_checkpoint", "", "__class__")): self._value(depth + 1)}
        return r.choice(values)

    def _fields(self):
        r = self.random
        names = (
            "prompt n size model seed scheduler stream partial_images output_format output_compression quality user "
            "height width num_inference_steps guidance_scale sigmas timesteps clip_skip image mask_image generator "
            "latents callback_on_step_end prompt_embeds joint_attention_kwargs ip_adapter_image init_images mask steps "
            "cfg_scale batch_size n_iter sampler_name override_settings alwayson_scripts styles denoising_strength "
            "mask_blur sd_model_checkpoint max_sequence_length skip_guidance_layers hr_scale __proto__"
        ).split()
        fields = {"prompt": "x", "num_inference_steps": 1} if r.random() < 0.7 else {}
        fields.update({r.choice(names): self._value() for _ in range(r.randrange(1, 5))})
        return fields

    def _target(self):
        return self.random.choice(
            (
                *("/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"),
                *("/sdapi/v1/options", "/sdapi/v1/interrupt", "/v1/models"),
            )
        )

    def _post(self, body, kind="application/json", target=None, length=None):
        length = len(body) if length is None else length
        head = f"POST {target or self._target()} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        return (head + f"Content-Length: {length}\r\nConnection: close\r\n\r\n").encode() + body

    def _json(self):
        return self._post(json.dumps(self._fields()).encode())

    def _broken(self):
        body = bytearray(json.dumps(self._fields()).encode())
        for _ in range(self.random.randrange(1, 8)):
            body[self.random.randrange(len(body))] = self.random.randrange(256)
        deep = b"[" * 50_000
        return self._post(self.random.choice((bytes(body), deep, b'{"a":' * 20_000, b"", b"\xff\xfe{\x00", b"nul")))

    def _upload(self):
        r, edge = self.random, "edge"
        pictures = (png(), bomb(), b"", b"GIF89a" + bytes(50), b"<svg/>", png()[:40], b"%!PS\n", png(16, 16, "RGBA"))
        parts = []
        for name in r.sample(
            ("image", "image[]", "mask", "prompt", "n", "size", "strength", "x" * 5000), r.randrange(1, 5)
        ):
            file = f'; filename="{r.choice(("a.png", self.canary, "../../x", "a" * 3000))}"' if r.random() < 0.7 else ""
            head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
            value = r.choice(pictures) if file else json.dumps(self._value()).encode()
            parts.append(head.encode() + value + b"\r\n")
        body = b"".join(parts * r.choice((1, 1, 1, 60))) + f"--{edge}--\r\n".encode()
        kind = r.choice(
            (f"multipart/form-data; boundary={edge}", "multipart/form-data", "multipart/form-data; boundary=")
        )
        return self._post(body, kind, r.choice(("/v1/images/edits", self._target())))

    def _line(self):
        lines = (
            b"GET / HTTP/9.9",
            b"\x16\x03\x01\x02\x00",
            b"GET  /",
            b"G" * 70_000,
            b"PRI * HTTP/2.0",
            b"\r\n\r\n\r\n",
        )
        return self.random.choice(lines) + b"\r\n\r\n"

    def _headers(self):
        r = self.random
        flood = b"".join(b"X-%d: %s\r\n" % (i, b"y" * r.choice((10, 1000))) for i in range(r.choice((50, 2000))))
        keys = (b"Bearer " + b"k" * 3000, b"Basic ====", b"Basic " + b"\xff" * 20, b"\x01", b"Bearer", b"")
        return b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: " + r.choice(keys) + b"\r\n" + flood + b"\r\n"

    def _length(self):
        length = self.random.choice(("-1", "99999999999999999999999", "1e9", "2000000000", "abc", "0", "3, 4"))
        return self._post(b'{"prompt": "x"}', length=length)

    def _slow(self):
        whole = self._post(json.dumps(self._fields()).encode(), length=self.random.choice((None, 1_000_000)))
        return whole[: self.random.randrange(1, len(whole))]

    def _path(self):
        target = self.random.choice(
            (
                *(f"/{self.canary}", "/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/../../x", "//x"),
                *(f"/file={self.canary}", "/v1/models/" + "%00" * 50, "/static/" + "a" * 10_000, "http://x/", "*"),
            )
        )
        return f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

    def _noise(self):
        return self.random.randbytes(self.random.randrange(1, 3000))


def send(port, content, pause=0.0, seconds=15.0):
    """Sends ``content`` and reads until the server closes -> (answer, seconds until it did)."""
    began, answer = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), seconds) as client:
        with contextlib.suppress(OSError):
            if pause:
                half = len(content) // 2
                client.sendall(content[:half])
                time.sleep(pause)
                content = content[half:]
            client.sendall(content)
            if not pause:
                client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while (piece := client.recv(1 << 16)) and len(answer) < 1 << 22:
                answer += piece
    return answer, time.monotonic() - began
