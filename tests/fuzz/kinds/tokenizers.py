"""The files of tokenizers."""

from __future__ import annotations

import json

from helpers import tiny

from .. import corpus, mutation
from ..case import Case

_TEXT = "a red circle, 12 é!"


class Kind:
    def __init__(self, directory):
        import ppsd3

        vocab, merges = tiny.clip_vocabulary()
        ppsd3.CLIPTokenizer(vocab, merges).save_pretrained(directory / "clip_fast")
        tiny.write_clip_tokenizer(directory / "clip_slow")
        ppsd3.T5Tokenizer(tiny.t5_pieces(), extra_ids=0).save_pretrained(directory / "t5_fast")
        corpus.link(directory / "t5_fast", directory / "t5_slow")
        (directory / "t5_slow" / "tokenizer.json").unlink()
        self.sources = [(directory / name, ppsd3.CLIPTokenizer) for name in ("clip_fast", "clip_slow")]
        self.sources += [(directory / name, ppsd3.T5Tokenizer) for name in ("t5_fast", "t5_slow")]

    def case(self, rng, place):
        source, class_ = rng.choice(self.sources)
        folder = place / source.name
        corpus.link(source, folder)
        file = rng.choice(sorted(folder.iterdir()))
        data = file.read_bytes()
        if file.suffix == ".json" and rng.random() < 0.8:
            content, keys = mutation.mutated(rng, json.loads(data))
            data, changed = mutation.json_text(rng, content), str(keys)
        elif file.suffix == ".txt" and rng.random() < 0.5:
            lines = data.decode().split("\n")
            lines[rng.randrange(len(lines))] = mutation.text(rng).encode(errors="replace").decode()
            data, changed = "\n".join(lines).encode(), "lines"
        else:
            data, changed = mutation.changed_bytes(rng, data), "bytes"
        corpus.replace(file, data)
        if rng.random() < 0.3 and (folder / "tokenizer.json").exists() and file.name != "tokenizer.json":
            (folder / "tokenizer.json").unlink()  # then the others are read
        return Case(lambda: _use(class_, folder), (str(folder), "padding"), f"{folder.name}/{file.name}: {changed}")


def _use(class_, folder):
    tokenizer = class_.from_pretrained(folder)
    tokenizer.decode(tokenizer(_TEXT, padding="max_length", max_length=20, truncation=True).input_ids[0])
