"""PNG files: as what a command takes its settings from, describes, or begins with."""

from __future__ import annotations

import json
import struct
import zlib

from .. import corpus, mutation
from ..case import Case

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIDE = 16
BOMB = zlib.compress(b" " * 10**7)
SETTINGS = {
    "prompt": "a red circle", "negative_prompt": "blue", "num_inference_steps": 1, "guidance_scale": 5.0, "seed": 3,
    "width": SIDE, "height": SIDE, "model": "shapes", "dtype": "float32", "num_images_per_prompt": 1,
    "ppsd3_version": "0.1.0", "sigmas": [1.0, 0.5], "max_sequence_length": 77, "clip_skip": 0,
}  # fmt: skip
_TASKS = {"img2img": {"strength": 0.5, "command": "img2img"}}
_ORDERS = ("output", "lora", "prompt_file", "config", "preview", "ip_adapter", "textual_inversion", "from_png", "debug")


class Kind:
    def __init__(self, directory):
        corpus.pipeline(directory / "model")
        self.model = directory / "model"

    def case(self, rng, place):
        chunks, changed, keys = _chunks(rng)
        data = SIGNATURE + b"".join(chunks)
        if rng.random() < 0.2:
            data, changed = mutation.changed_bytes(rng, data), changed + ", bytes"
        file = place / "drawn.png"
        file.write_bytes(data)
        loaded = ("--model", self.model, "--output", place / "new.png", *corpus.SMALL_OPTIONS)
        use = rng.choice(("info", "info", "generate", "img2img", "image", "load_image"))
        commands = {
            "info": ("info", file),
            "generate": ("generate", "--from-png", file, *loaded),
            "img2img": ("img2img", "--from-png", file, "--image", file, *loaded),
            "image": ("img2img", "a", "--image", file, *loaded),
        }
        run = (lambda: _load(file)) if use == "load_image" else (lambda: corpus.command(*commands[use]))
        return Case(run, (file.name, "PROMPT", *keys), f"{use}: {changed}")


def _load(file):
    from ppsd3.utils.images import load_image

    load_image(str(file)).getpixel((0, 0))


def chunk(kind, data, crc=None):
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def picture(text_chunks=(), size=(SIDE, SIDE), depth=8, colour=2, rows=None):
    """Chunks of a grey picture with ``text_chunks``."""
    rows = zlib.compress((b"\0" + b"\x80" * (SIDE * 3)) * SIDE) if rows is None else rows
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *(side % 2**32 for side in size), depth, colour, 0, 0, 0))
    return [header, *text_chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")]


def _chunks(rng):
    """(chunks, what was changed, the settings that may be at fault)."""
    settings = dict(SETTINGS)
    if rng.random() < 0.3:
        settings.update(_TASKS["img2img"])
    content, keys = mutation.mutated(rng, settings)
    if rng.random() < 0.15 and isinstance(content, dict):
        content[rng.choice(_ORDERS)] = rng.choice((["/etc/passwd"], "/etc/passwd", True, mutation.value(rng)))
    text = mutation.json_text(rng, content)
    choice = rng.randrange(12)
    if choice < 6:
        return picture([_text(rng, text)]), f"settings {keys}", keys
    plain = _text(rng, json.dumps(settings).encode())
    if choice == 6:
        size = (rng.choice((0, 1, 16, 30_000, 2**31 - 1, 2**32 - 1)), rng.choice((0, 16, 30_000, 2**31 - 1)))
        return picture([plain], size), f"size {size}", ()
    if choice == 7:
        depth, colour = rng.choice((1, 2, 4, 8, 16, 0, 255)), rng.choice((0, 2, 3, 4, 6, 9))
        return picture([plain], depth=depth, colour=colour), f"depth {depth}, colour {colour}", ()
    if choice == 8:
        kinds = [
            chunk(b"zTXt", b"ppsd3\0\0" + BOMB),
            chunk(b"iTXt", b"ppsd3\0\1\0\0\0" + BOMB),
            chunk(b"iCCP", b"a\0\0" + BOMB),
        ]
        return picture([rng.choice(kinds)] * rng.choice((1, 8))), "a text that swells", ()
    if choice == 9:
        return picture([plain], rows=mutation.changed_bytes(rng, zlib.compress(b"\0" * 784))), "pixels", ()
    chunks = picture([plain, chunk(mutation.text(rng).encode(errors="replace")[:4].ljust(4, b"a"), b"x")])
    if choice == 10:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
        del chunks[rng.randrange(len(chunks))]
        return chunks, "order of the chunks", ()
    at = rng.randrange(len(chunks))
    chunks[at] = chunks[at][:-4] + rng.randbytes(4)
    return chunks, f"check sum of chunk {at}", ()


def _text(rng, data):
    """A chunk that holds ``data`` as ppsd3's settings."""
    choice = rng.randrange(4)
    if choice == 0:
        return chunk(b"tEXt", b"ppsd3\0" + data)
    if choice == 1:
        return chunk(b"zTXt", b"ppsd3\0\0" + zlib.compress(data))
    packed = choice == 2
    return chunk(b"iTXt", b"ppsd3\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(data) if packed else data))
