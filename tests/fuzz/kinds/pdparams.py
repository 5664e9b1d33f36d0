"""Pickles of Paddle: nothing in them is run, and what cannot be read without running it is refused."""

from __future__ import annotations

import pickle

from helpers import paddle_directories

from .. import corpus, mutation
from ..case import Case, Wrong

_TRACE = "obeyed"
_ORDERS = (
    b"cos\nmkdir\n(V%s\ntR" % _TRACE.encode(),
    b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x06%s\x85R" % _TRACE.encode(),
    b"cbuiltins\neval\n(Vopen('%s','w')\ntR" % _TRACE.encode(),
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I-1\ntVb\ntR",
    b"cnumpy\nload\n(V/etc/passwd\ntR",
    b"ccopyreg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR",
)


class Kind:
    def __init__(self, directory):
        network = corpus.networks()["text_encoder_3"]
        self.source = paddle_directories.write_network(directory / "text_encoder_3", network, "pickle")

    def case(self, rng, place):
        folder = place / "text_encoder_3"
        corpus.link(self.source, folder)
        file = folder / "model_state.pdparams"
        data = file.read_bytes()
        if rng.random() < 0.5:
            data = pickle.dumps(pickle.loads(data), rng.choice((2, 3, 4, 5)))
        choice = rng.randrange(6)
        if choice == 0:
            at = rng.choice((2, 11, len(data) - 1))
            order = rng.choice(_ORDERS)
            data, changed = data[:at] + order + data[at:], f"{order} at {at}"
        elif choice == 1:
            content = pickle.loads(data)
            key = rng.choice(sorted(content))
            content[rng.choice((key, mutation.text(rng), 5))] = rng.choice((mutation.value(rng), b"x", (1, 2), 1j))
            data, changed = pickle.dumps(content, 4), f"an entry beside {key}"
        elif choice == 2:
            data, changed = mutation.changed_bytes(rng, data, 0, 400), "first bytes"
        elif choice == 3:  # opcodes of a pickle instead of others
            data = bytearray(data)
            for _ in range(rng.choice((1, 3))):
                data[rng.randrange(min(len(data), 3000))] = rng.choice(
                    b"().NIJKMLGFVXBCcobuatelsdphjgrqR0123\x80\x8c\x8d\x93\x94\x95\x96\x97"
                )
            data, changed = bytes(data), "opcodes"
        else:
            data, changed = mutation.changed_bytes(rng, data), "bytes"
        corpus.replace(file, data)
        convert = rng.random() < 0.3
        return Case(lambda: _use(folder, place / "new" if convert else None), (str(folder),), changed)


def _use(folder, target):
    import pathlib

    from ppsd3 import convert
    from ppsd3.serialization.pdparams import PdparamsFile

    try:
        if target is not None:
            convert(folder, target)
        else:
            file = PdparamsFile(folder / "model_state.pdparams")
            for name in file.keys():
                file.load(name)
    finally:
        if pathlib.Path(_TRACE).exists():
            raise Wrong("what the pickle says was done")
