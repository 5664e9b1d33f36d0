"""Weights in prompts, prompts of any length, and every combination of absent text encoders."""

import contextlib
import itertools
import logging
import sys
import time

import numpy as np
import pytest
from helpers import tiny

from ppsd3 import TorchGenerator, WeightedPrompts
from ppsd3.pipelines.stable_diffusion_3.prompt_reading import parse_weights
from ppsd3.utils.errors import InputError

TEXTS = {
    "a red circle": [[("a red circle", 1.0)]],
    "a (red) circle": [[("a ", 1.0), ("red", 1.1), (" circle", 1.0)]],
    "a ((red)) circle": [[("a ", 1.0), ("red", 1.21), (" circle", 1.0)]],
    "(red:1.3)": [[("red", 1.3)]],
    "(red: 0.5 ) x": [[("red", 0.5), (" x", 1.0)]],
    "(a (red:2) b:0.5)": [[("a ", 0.5), ("red", 1.0), (" b", 0.5)]],
    "[red] [[blue]]": [[("red", 1 / 1.1), (" ", 1.0), ("blue", 1 / 1.21)]],
    "([x])": [[("x", 1.0)]],
    r"\(x\) \[y\] \\": [[("(", 1), ("x", 1), (")", 1), (" ", 1), ("[", 1), ("y", 1), ("]", 1), (" ", 1), ("\\", 1)]],
    "at 12:30) :1.2": [[("at 12", 1), (":30)", 1), (" :1.2", 1)]],
    "x] y": [[("x", 1.0), ("]", 1.0), (" y", 1.0)]],
    "a (red": [[("a ", 1.0), ("red", 1.1)]],
    "a [red (x": [[("a ", 1.0), ("red ", 1 / 1.1), ("x", 1.0)]],
    "(x:-1)": [[("x", -1.0)]],
    "a BREAK (b:2)": [[("a", 1.0)], [("b", 2.0)]],
    "BREAKFAST": [[("BREAKFAST", 1.0)]],
    "": [[]],
}


@pytest.mark.parametrize("text", TEXTS)
def test_signs(text):
    found = parse_weights(text)
    assert [[part for part, _ in section] for section in found] == [[p for p, _ in s] for s in TEXTS[text]]
    for section, expected in zip(found, TEXTS[text]):
        np.testing.assert_allclose([w for _, w in section], [w for _, w in expected])


def test_a_weight_that_is_no_number():
    with pytest.raises(InputError, match=r"':1\.2\.3\)' of the prompt .* is no number"):
        parse_weights("a (red:1.2.3) circle")


HOSTILE = ["(", ")", "[", "]", "\\(", ":", "(a)", "(a:1)", "[a]", "((a))", " ", " BREAK ", ":1", "(a:", "1", "\\"]


def lines_to_parse(text):
    """Number of lines of Python that run, which no other process on the machine changes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(InputError):
            parse_weights(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_with_the_length(piece):
    """... also behind as many open brackets as there may be, which all weigh everything after them."""
    for start in ("", "(" * 49):
        once, twice = (lines_to_parse(start + piece * n) for n in (200, 400))
        assert twice <= 2.2 * once
    started = time.process_time()
    with contextlib.suppress(InputError):
        parse_weights(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text, message",
    [
        ("(" * 51 + "a", "more than 50 brackets open at once"),
        ("(a:" + "9" * 400 + ")", r"weighs 'a' by inf. Write at most 10000"),
        ("((a:-9999):9)", "weighs 'a' by -89991"),
    ],
)
def test_weights_that_nothing_survives(text, message):
    with pytest.raises(InputError, match=message):
        parse_weights(text)


@pytest.fixture
def pipe():
    pipe = tiny.make_pipeline()
    pipe.prompt_reader = WeightedPrompts()
    return pipe


def encode(pipe, prompt, **options):
    """(embeds, negative embeds, pooled, negative pooled) as arrays."""
    tensors = pipe.encode_prompt(prompt, None, None, max_sequence_length=32, **options)
    return [None if t is None else t.numpy() for t in tensors]


def positions(tokenizer, prompt, word, start):
    """Where the tokens of ``word`` are in a row that begins with ``start`` special tokens."""
    begin, end = prompt.index(word), prompt.index(word) + len(word)
    return [i + start for i, (_, a, b) in enumerate(tokenizer.spans(prompt)) if begin < b <= end]


def test_a_weight_moves_its_tokens_away_from_the_empty_prompt(pipe):
    text = "a red circle of the square"
    plain, empty = encode(pipe, text)[0], encode(pipe, "")[0]
    weighted, _, pooled, _ = encode(pipe, "a red (circle:1.7) of the square")
    expected = plain.copy()
    for first, tokenizer, start in ((0, pipe.tokenizer, 1), (77, pipe.tokenizer_3, 0)):
        rows = [first + i for i in positions(tokenizer, text, "circle", start)]
        assert rows
        expected[:, rows] = empty[:, rows] + 1.7 * (plain[:, rows] - empty[:, rows])
    np.testing.assert_allclose(weighted, expected, atol=1e-5)
    np.testing.assert_allclose(pooled, encode(pipe, text)[2], atol=1e-6)


def test_the_mean_is_kept():
    pipe = tiny.make_pipeline()
    plain = encode(pipe, "a red circle")[0]
    pipe.prompt_reader = WeightedPrompts("mean")
    weighted = encode(pipe, "a (red:1.5) circle")[0]
    clip = slice(0, 28)  # the towers' columns; the rest is padding
    towers = [(0, 77, slice(0, 16)), (0, 77, slice(16, 28)), (77, 109, slice(0, 40))]
    for start, end, columns in towers:
        before, after = plain[0, start:end, columns], weighted[0, start:end, columns]
        np.testing.assert_allclose(after.mean(), before.mean(), rtol=1e-3)
        assert np.abs(after - before).max() > 0.01
    assert not weighted[0, :77, clip.stop :].any()
    with pytest.raises(InputError, match="`method` is 'x'; it has to be 'empty' or 'mean'"):
        WeightedPrompts("x")


def test_without_weights_nothing_changes():
    pipe = tiny.make_pipeline()
    prompts = ["a red circle", r"two squares, 5 o'clock!"]
    plain = encode(pipe, prompts, clip_skip=1)
    pipe.prompt_reader = WeightedPrompts()
    for same in (prompts, ["a (red:1.0) circle", prompts[1]]):
        for found, expected in zip(encode(pipe, same, clip_skip=1), plain):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_prompts_of_one_batch_keep_to_themselves(pipe):
    texts = ["a (red:1.5) circle", "the square " * 30, "[blue] square"]
    together = encode(pipe, texts, clip_skip=1, negative_prompt="(red:0.5)")
    for i, text in enumerate(texts):
        alone = encode(pipe, [text, texts[1]], clip_skip=1, negative_prompt="(red:0.5)")
        for found, expected in zip(together, alone):
            np.testing.assert_allclose(found[i], expected[0], atol=1e-5)


def test_long_prompts_go_on_in_further_rows(pipe, caplog):
    text = " ".join(["red"] * 80)  # one token each
    with caplog.at_level(logging.WARNING, "ppsd3"):
        embeds, negative, pooled, _ = encode(pipe, text)
    assert [r.message.split()[0] for r in caplog.records] == ["tokenizer_3"]  # T5 alone loses its end
    assert embeds.shape == negative.shape == (1, 2 * 77 + 32, 40)
    first, _, first_pooled, _ = encode(pipe, " ".join(["red"] * 75))
    second = encode(pipe, " ".join(["red"] * 5))[0]
    np.testing.assert_allclose(embeds[:, :77], first[:, :77], atol=1e-5)
    np.testing.assert_allclose(embeds[:, 77:154], second[:, :77], atol=1e-5)
    np.testing.assert_allclose(pooled, first_pooled, atol=1e-5)
    empty = encode(pipe, "")[0]
    np.testing.assert_allclose(negative[:, 77:154], empty[:, :77], atol=1e-5)


def test_break_begins_a_row_for_clip_and_a_word_for_t5(pipe):
    embeds = encode(pipe, "a red circle BREAK the square")[0]
    for rows, text in ((slice(0, 77), "a red circle"), (slice(77, 154), "the square")):
        np.testing.assert_allclose(embeds[:, rows], encode(pipe, text)[0][:, :77], atol=1e-5)
    t5 = encode(pipe, "a red circle the square")[0][:, 77:]
    np.testing.assert_allclose(embeds[:, 154:], t5, atol=1e-5)


def test_a_long_weighted_prompt_is_drawn(pipe):
    call = {"num_inference_steps": 1, "output_type": "np", "max_sequence_length": 16}
    pictures = [
        pipe(f"a (red:{w}) circle " + "of a square " * 40, generator=TorchGenerator(0), **call).images for w in (1, 3)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-4


def test_tokenizers_of_others(pipe):
    class Other:
        pass

    pipe.tokenizer = Other()
    with pytest.raises(InputError, match="`tokenizer` is a Other, which does not say where its tokens are"):
        encode(pipe, "x")


@pytest.mark.parametrize("reader", ["plain", "weighted"])
@pytest.mark.parametrize("absent", [c for n in range(4) for c in itertools.combinations(("", "_2", "_3"), n)])
def test_any_text_encoders_may_be_absent(absent, reader):
    pipe = tiny.make_pipeline()
    whole = encode(pipe, "a red circle")[0]
    pipe.prompt_reader = WeightedPrompts() if reader == "weighted" else pipe.prompt_reader
    for suffix in absent:
        setattr(pipe, "text_encoder" + suffix, None)
        setattr(pipe, "tokenizer" + suffix, None)
    prompt = "" if len(absent) == 3 else "a red circle"
    embeds, _, pooled, _ = encode(pipe, prompt)
    columns = {
        "": (slice(0, 77), slice(0, 16)),
        "_2": (slice(0, 77), slice(16, 28)),
        "_3": (slice(77, 109), slice(0, 40)),
    }
    assert embeds.shape == whole.shape and pooled.shape == (1, 28)
    for suffix, (rows, features) in columns.items():
        expected = 0 * whole if suffix in absent else whole
        np.testing.assert_allclose(embeds[0, rows, features], expected[0, rows, features], atol=1e-5)
    image = pipe(prompt, num_inference_steps=1, output_type="np").images[0]
    assert np.isfinite(image).all()
