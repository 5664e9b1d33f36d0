"""Patterns of modules' names: what Python's re says, and never longer than a moment."""

import random
import re
import time

import pytest
from helpers import tiny

from ppsd3 import LoraConfig
from ppsd3.adapters.patterns import NamePattern, PatternTable
from ppsd3.ops import Linear
from ppsd3.utils.errors import InputError

ATOMS = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "1", "(a|b)", "(?:ab)*", "(a+)+", "(|a)", "^", "$"]
ATOMS += ["(a|b1)?", "a{2}", "b{0,2}", "a{1,}", "(ab){0}", "x*?"]
# Python's re needs longer than the age of the universe for some of these, on the names of a transformer.
HOSTILE = [
    "(a+)+$",
    "(.*)*x" * 20,
    "(([a-z_.0-9]+)+)+!",
    "(.?){0,40}(.?){0,40}x",
    ".*" * 150 + "x",
    "(x+x+)+y",
    "(a|aa)+$",
]
NAMES = [f"transformer_blocks.{i}.attn.to_{x}" for i in range(38) for x in ("q", "k", "v", "out.0")]


def pattern_of(rng):
    text = ""
    for _ in range(rng.randint(1, 5)):
        atom = rng.choice(ATOMS)
        text += atom
        if rng.random() < 0.3 and atom[-1] not in "*+?}^$":
            text += rng.choice(["*", "+", "?", "{2}", "{1,2}"])
        if rng.random() < 0.15:
            text += "|"
    return text


def test_they_match_what_re_matches():
    rng = random.Random(0)
    for _ in range(700):
        text = pattern_of(rng)
        try:
            wanted = re.compile(text)
        except re.error:
            continue
        pattern = NamePattern(text)
        for _ in range(4):
            name = "".join(rng.choice("ab1.") for _ in range(rng.randint(0, 7)))
            assert pattern.matches(name) == bool(wanted.fullmatch(name)), (text, name)
            assert pattern.matches_end(name) == bool(re.match(rf"(.*\.)?({text})$", name)), (text, name)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_ones_take_no_time(text):
    start = time.process_time()
    table = PatternTable({text: 1}, "alpha_pattern")
    assert [table.get("a" * 60 + "." + name, None) for name in NAMES] == [None] * len(NAMES)
    config = LoraConfig(target_modules=text)
    layer = Linear(2, 2)
    assert not any(config.matches(name, layer) for name in NAMES)
    assert time.process_time() - start < 2


REFUSED = ["(?=a)a", "(?!a)b", r"(a)\1", "(?P<x>a)", "(", ")", "[", "[z-a]", "*a", "a**", "a{2,1}", "a{x}", "\\", r"\b"]


@pytest.mark.parametrize("text", [*REFUSED, "(" * 50 + ")" * 50, "(a{0,999}){0,999}", ".?" * 2000, "a{9999}"])
def test_what_is_not_read_is_refused(text):
    start = time.process_time()
    with pytest.raises(InputError, match=r"alpha_pattern: The pattern .* has .*\. Write a module's name"):
        PatternTable({text: 1}, "alpha_pattern")
    assert time.process_time() - start < 1


def test_many_at_once():
    with pytest.raises(InputError, match="regular expressions of more than 1000 parts together"):
        PatternTable({f"(.{{0,99}})x{i}": 1 for i in range(30)}, "alpha_pattern")
    names = {f"transformer_blocks.{i}.attn.to_q": i for i in range(20000)}
    table = PatternTable(names, "alpha_pattern")
    assert table.get("transformer_blocks.7.attn.to_q", None) == 7
    assert table.get("transformer_blocks.7.attn.to_k", None) is None


def test_the_first_that_matches_counts():
    table = PatternTable({"attn.to_q": 1, r".*\.to_q": 2, "to_k": 3, "^to_v": 4, "^blocks.0.attn.to_v$": 5}, "x")
    assert [table.get(f"blocks.0.attn.to_{x}", 0) for x in ("q", "k", "v", "out")] == [1, 3, 5, 0]
    assert table.get("blocks.0.ff.to_q", 0) == 2 and table.get("to_v", 0) == 4 and table.get("xto_k", 0) == 0
    assert PatternTable({"(to_q|to_k)": 1, "to_q": 2}, "x").get("a.to_q", 0) == 1


def test_patterns_of_a_training():
    config = LoraConfig(r=2, target_modules=r"transformer_blocks\.[01]\..*(to_q|to_k)", exclude_modules=["1.attn.to_k"])
    config.rank_pattern, config.alpha_pattern = {"0.attn.to_q": 3}, {"(to_k|x)+": 8}
    transformer = tiny.make_pipeline().transformer
    transformer.add_adapter(config)
    layers = {
        name[: -len(".adapters.default")]: layer
        for name, layer in transformer.named_sublayers()
        if name.endswith(".adapters.default")
    }
    found = {name: (layer.rank, layer.scaling) for name, layer in layers.items()}
    start = "transformer_blocks."
    assert found == {
        f"{start}0.attn.to_q": (3, 4 / 3),
        f"{start}0.attn.to_k": (2, 4.0),
        f"{start}1.attn.to_q": (2, 2.0),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": ["to_q"]},
        {"rank_pattern": {"to_q": "4"}},
        {"alpha_pattern": {"to_q": "4"}},
        {"alpha_pattern": {7: 4}},
        {"lora_alpha": None},
        {"target_modules": "(?!to_q).*"},
        {"exclude_modules": "("},
    ],
)
def test_settings_that_are_none(settings):
    with pytest.raises(InputError):
        tiny.make_pipeline().transformer.add_adapter(LoraConfig(**settings))
