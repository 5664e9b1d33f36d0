"""Tokenizer files from strangers: each ends in a tokenizer, or in an error of ours that names the directory."""

import base64
import json
import pathlib
import random
import shutil

import numpy as np
import pytest
from helpers.process import run

from ppsd3.transformers import CLIPTokenizer, T5Tokenizer
from ppsd3.transformers.t5.sentencepiece_model import check_charsmap, read_sentencepiece_model
from ppsd3.utils.errors import CheckpointFormatError, ConfigError, InputError, PPSD3Error

KINDS = {"clip_fast": CLIPTokenizer, "clip_slow": CLIPTokenizer, "t5_fast": T5Tokenizer, "t5_slow": T5Tokenizer}
HOSTILE = [
    None, True, 0, -1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "a", " ", "x" * 5000, "\0", [], [1],
    ["a", "b", "c"], [[]], {}, {"content": 5}, {"content": ""}, {"content": "<a>", "lstrip": "yes"}, {"a": {"b": []}},
]  # fmt: skip


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Kind -> a directory with the files of a small tokenizer."""
    shapes = pathlib.Path(__file__).parents[2] / "ppsd3" / "shapes" / "checkpoint"
    found = {}
    for kind, class_ in KINDS.items():
        found[kind] = tmp_path_factory.mktemp(kind) / kind
        own = class_.from_pretrained(shapes / ("tokenizer_3" if class_ is T5Tokenizer else "tokenizer"))
        own.save_pretrained(found[kind])
        if kind.endswith("slow"):
            (found[kind] / "tokenizer.json").unlink()
    return found


@pytest.fixture
def directory(request, directories, tmp_path):
    """A copy of the directory of the kind that the test is called with, to be spoilt."""
    shutil.copytree(directories[request.param], tmp_path / request.param)
    return tmp_path / request.param


def tokenized(path):
    """The message of the error that the tokenizer in ``path``, or its use, ends in; None if it is usable."""
    try:
        tokenizer = KINDS[path.name].from_pretrained(path)
        ids = tokenizer(["a red circle, é 猫", ""], padding="longest").input_ids
        tokenizer.batch_decode(ids)
    except PPSD3Error as error:
        return str(error)
    return None


def edited(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_sound_ones_are_read(directories, kind):
    assert tokenized(directories[kind]) is None


def places(value, where=()):
    """Where in a JSON value something is, to the fifth of each list or object."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:5]:
        yield (*where, key)
        yield from places(item, (*where, key))


@pytest.mark.parametrize("directory", KINDS, indirect=True)
def test_values_replaced_or_missing(directory):
    """A seeded walk over the places of all JSON files."""
    rng, wrong = random.Random(directory.name), []
    for file in sorted(directory.glob("*.json")):
        sound = file.read_text(encoding="utf-8")
        known = list(places(json.loads(sound)))
        for where in rng.sample(known, min(len(known), 25)):
            value = rng.choice([*HOSTILE, KeyError])

            def change(content, where=where, value=value):
                for key in where[:-1]:
                    content = content[key]
                if value is KeyError:
                    del content[where[-1]]
                else:
                    content[where[-1]] = value

            file.write_text(sound, encoding="utf-8")
            edited(file, change)
            message = tokenized(directory)
            if message is not None and str(directory) not in message and "pad_token" not in message:
                wrong.append((file.name, where, value, message))
            assert len(message or "") < 2000
        file.write_text(sound, encoding="utf-8")
    assert not wrong


@pytest.mark.parametrize("directory", KINDS, indirect=True)
def test_bytes_changed_or_cut_off(directory):
    rng = random.Random(directory.name)
    for file in sorted(directory.iterdir()):
        sound = file.read_bytes()
        for _ in range(12):
            spoilt = bytearray(sound)
            for _ in range(rng.choice([1, 1, 3])):
                spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
            file.write_bytes(rng.choice([spoilt, spoilt[: rng.randrange(len(spoilt))]]))
            message = tokenized(directory)
            assert message is None or str(directory) in message or "pad_token" in message
        file.write_bytes(sound)


@pytest.mark.parametrize("directory", ["clip_slow"], indirect=True)
@pytest.mark.parametrize(
    "change, says",
    [
        (lambda vocab: vocab.update(a=2**31), "has each id|have each id"),
        (lambda vocab: vocab.update(a=vocab["b"]), "have each id from 0 on once"),
        (lambda vocab: vocab.update(a=-1), "have each id from 0 on once"),
        (lambda vocab: vocab.pop("a"), "have each id from 0 on once"),
        (lambda vocab: vocab.update(a="5"), "gives 'a' the id '5', no whole number"),
        (lambda vocab: vocab.update(a=True), "gives 'a' the id True"),
        (lambda vocab: vocab.update(a=1.0), "gives 'a' the id 1.0"),
        (lambda vocab: vocab.clear(), "has to be a dict of tokens"),
    ],
)
def test_ids_are_dense_and_unique(directory, change, says):
    edited(directory / "vocab.json", change)
    with pytest.raises(CheckpointFormatError, match=says) as caught:
        CLIPTokenizer.from_pretrained(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("directory", ["clip_slow"], indirect=True)
@pytest.mark.parametrize("line, says", [("a", "should be two tokens"), ("a b c", "two"), ("qq zz", "out of vocab")])
def test_merges_are_of_two_known_tokens(directory, line, says):
    with open(directory / "merges.txt", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(CheckpointFormatError, match=says) as caught:
        CLIPTokenizer.from_pretrained(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("directory", ["clip_fast", "t5_slow"], indirect=True)
def test_an_added_token_has_the_id_that_its_file_says(directory):
    def change(content):
        token = {"content": "<new>", "special": False}
        content["added_tokens_decoder"]["100000"] = token

    edited(directory / "tokenizer_config.json", change)
    with pytest.raises(CheckpointFormatError, match="gives the token '<new>' the id 100000, but its vocabulary"):
        KINDS[directory.name].from_pretrained(directory)


@pytest.mark.parametrize("directory", ["clip_fast"], indirect=True)
@pytest.mark.parametrize("length, known", [(10**30, 77), (1e30, 77), (2**21, 77), (30, 30), (30.0, 30)])
def test_model_max_length(directory, length, known):
    edited(directory / "tokenizer_config.json", lambda config: config.update(model_max_length=length))
    assert CLIPTokenizer.from_pretrained(directory).model_max_length == known


@pytest.mark.parametrize("directory", ["clip_fast"], indirect=True)
@pytest.mark.parametrize("length", [-1, 0.0, "77", [77], True])
def test_model_max_length_is_a_number_above_0(directory, length):
    edited(directory / "tokenizer_config.json", lambda config: config.update(model_max_length=length))
    if length == 0.0 and not isinstance(length, bool):
        with pytest.raises(CheckpointFormatError, match="above 0"):
            CLIPTokenizer.from_pretrained(directory)
        return
    with pytest.raises(CheckpointFormatError, match="model_max_length"):
        CLIPTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("directory", ["t5_slow"], indirect=True)
@pytest.mark.parametrize("count", [10**9, -1, "100", [3], 1.5])
def test_the_number_of_sentinels_is_bounded(directory, count):
    edited(directory / "tokenizer_config.json", lambda config: config.update(extra_ids=count))
    with pytest.raises(CheckpointFormatError, match="extra_ids"):
        T5Tokenizer.from_pretrained(directory)


@pytest.mark.parametrize("directory", ["t5_fast"], indirect=True)
@pytest.mark.parametrize(
    "rules, says",
    [
        (b"", "cut short"),
        (b"\x04\0\0\0\xff\xff\xff\x7fabc\0", "damaged"),
        ((1024).to_bytes(4, "little") + np.random.default_rng(0).bytes(1024) + b"abc\0", "damaged"),
        ((2**31).to_bytes(4, "little") + b"abc", "cut short"),
        (None, "not in base64"),
    ],
)
def test_damaged_normalization_rules_do_not_make_rust_panic(directory, rules, says):
    text = "a" if rules is None else base64.b64encode(b"\0\0\0\0" if rules == b"" else rules).decode()

    def change(content):
        content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": text}

    edited(directory / "tokenizer.json", change)
    with pytest.raises(CheckpointFormatError, match=says) as caught:
        T5Tokenizer.from_pretrained(directory)
    assert str(directory) in str(caught.value)


def test_sound_rules_pass_the_check(tmp_path):
    """One place, 'a' -> "b": the root's offset is 256, where the byte 97 leads to a leaf, whose text is at 0."""
    units = np.zeros(1024, "<u4")
    units[0] = 256 << 10
    units[256 ^ 97] = 97 | 1 << 8 | 512 << 10
    units[(256 ^ 97) ^ 512] = 1 << 31 | 0
    rules = (4096).to_bytes(4, "little") + units.tobytes() + b"b\0"
    check_charsmap(rules)
    units[256 ^ 97] = 97 | 1 << 8 | (1 << 20) << 10
    with pytest.raises(CheckpointFormatError, match="damaged"):
        check_charsmap((4096).to_bytes(4, "little") + units.tobytes() + b"b\0")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 10**6,  # a number without end
        b"\x0a\xff\xff\xff\xff\x0f",  # a length beyond the file
        b"\x0a\x02\x10\x01",  # a piece without text
        b"\x0a\x02\x08\x01",  # a piece whose text is a number
        b"\x08\x01",  # a number in the place of a piece
        b"\x0a\x03\x0a\x01a\x12\x03\xc0\x02\x05",  # unk_id beyond the pieces
    ],
)
def test_damaged_sentencepiece_models(data):
    with pytest.raises(CheckpointFormatError, match=r"x\.model"):
        read_sentencepiece_model(data, "x.model")


def test_texts_and_tokens_that_are_not_unicode():
    tokenizer = CLIPTokenizer.published()
    with pytest.raises(InputError, match="surrogate"):
        tokenizer("a \ud800 cat")
    for token in ("\udfff", "x" * 1001, "", " a", 5):
        with pytest.raises(InputError, match="cannot be a token"):
            tokenizer.add_tokens([token])


def test_arguments_of_from_pretrained(directories):
    for name, value in (("pad_token", 5), ("model_max_length", "77"), ("model_max_length", 0)):
        with pytest.raises(InputError, match=name):
            CLIPTokenizer.from_pretrained(directories["clip_fast"], **{name: value})


def test_a_file_that_is_no_file(directories, tmp_path):
    shutil.copytree(directories["clip_slow"], tmp_path / "x")
    (tmp_path / "x" / "tokenizer.json").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        CLIPTokenizer.from_pretrained(tmp_path / "x")


_CHILD = """
import resource, sys
from ppsd3.transformers import CLIPTokenizer
from ppsd3.utils.errors import CheckpointFormatError
import tokenizers

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 1_000_000_000,) * 2)
for directory in sys.argv[1:]:
    try:
        CLIPTokenizer.from_pretrained(directory)
    except CheckpointFormatError as error:
        print("refused")
"""


@pytest.mark.machine
def test_a_huge_id_does_not_abort_the_process(directories, tmp_path):
    """Rust makes a table of as many rows, and aborts where it gets no memory for them."""
    for kind, file, change in (
        ("clip_slow", "vocab.json", lambda content: content.update(a=2**31)),
        ("clip_fast", "tokenizer.json", lambda content: content["model"]["vocab"].update(a=2**31)),
    ):
        shutil.copytree(directories[kind], tmp_path / kind)
        edited(tmp_path / kind / file, change)
    assert run(_CHILD, tmp_path / "clip_slow", tmp_path / "clip_fast").split() == ["refused"] * 2
