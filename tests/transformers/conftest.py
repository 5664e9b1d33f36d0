"""Tokenizer files and prompts that the tests of this directory share."""

import gzip
import json
import os
import pathlib
import random
import shutil

import pytest

HERE = pathlib.Path(__file__).resolve().parent


def clip_vocabulary(merges):
    """CLIP's ``vocab.json`` follows from its merges: bytes, bytes that end a word, merges, start and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
    tokens = alphabet + [f"{letter}</w>" for letter in alphabet] + ["".join(merge) for merge in merges]
    return {token: id for id, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


@pytest.fixture(scope="session")
def clip_bpe(tmp_path_factory):
    """Directory with the published CLIP ``vocab.json`` and ``merges.txt`` and nothing else."""
    target = tmp_path_factory.mktemp("clip_bpe")
    given = os.environ.get("PPSD3_CLIP_BPE")
    if given:
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(os.path.join(given, name), target / name)
        return target
    text = gzip.decompress(
        (HERE.parent.parent / "ppsd3" / "transformers" / "clip" / "merges.txt.gz").read_bytes()
    ).decode()
    merges = [line.split(" ") for line in text.splitlines()[1:]]
    (target / "merges.txt").write_text(text, encoding="utf-8")
    (target / "vocab.json").write_text(json.dumps(clip_vocabulary(merges)), encoding="utf-8")
    return target


@pytest.fixture(scope="session")
def clip_bpe_padded_with_zero(clip_bpe, tmp_path_factory):
    """The same vocabulary with the settings published for bigG: pad with ``!``."""
    target = tmp_path_factory.mktemp("clip_bpe_2")
    shutil.copytree(clip_bpe, target, dirs_exist_ok=True)
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {
            "0": {"content": "!", "normalized": False, **plain},
            "49406": {"content": "<|startoftext|>", "normalized": True, **plain},
            "49407": {"content": "<|endoftext|>", "normalized": False, **plain},
        },
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(scope="session")
def spiece(tmp_path_factory):
    """Directory with a small ``spiece.model`` laid out like T5's: pad 0, end 1, unknown 2, NMT-NFKC rules."""
    sentencepiece = pytest.importorskip("sentencepiece")
    target = tmp_path_factory.mktemp("spiece")
    corpus = target.parent / "corpus.txt"
    sources = sorted(HERE.glob("*.py")) + sorted((HERE.parent.parent / "ppsd3").glob("transformers/**/*.py"))
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    corpus.write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(target / "spiece"),
        model_type="unigram",
        vocab_size=600,
        character_coverage=0.995,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (target / "spiece.vocab").unlink()
    return target


SPECIAL_PROMPTS = [
    "",
    " ",
    "   ",
    "\t\n\r",
    "a photo of a cat",
    "A PHOTO of a Cat!",
    "  leading and trailing  ",
    "many     spaces\tand\ttabs\nand\n\nlines",
    "hello!! world! !",
    "it's we're they'll I've I'd don't can't 'tis o'clock 'S 'RE",
    "1234567890 3.14 1,000,000 2nd 50%",
    "e = mc² ½ ⅓ № ™ ℃ ① Ⅳ",
    "naïve café Ångström",
    "cafe\u0301 vs café; Å vs A\u030a; ﬁ ligature",
    "İstanbul ſtraße STRASSE ẞ ǅ",
    "日本語のテキスト、漢字とかな",
    "一只红色的圆形在蓝色方块的左边",
    "한국어 텍스트",
    "Привет мир",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "🎨🖌️ a painting 👩‍🎨 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 👍🏽",
    "zero\u200bwidth\u200djoiner\ufeffbom soft\u00adhyphen",
    "no\u00a0break\u2003em\u3000ideographic\u2028line",
    "control\x00\x01\x07\x1b\x7fchars\x85next",
    "\ufffd replacement \U0010ffff \ue000",
    "<|startoftext|>inside<|endoftext|> the text",
    "<|STARTOFTEXT|> <|EndOfText|>",
    "</s> <pad> <unk> <s> </w> <extra_id_0> a<extra_id_99>b <extra_id_100>",
    "▁already ▁marked a▁b",
    "<html>&amp; &lt;b&gt;</html> &quot;",
    "\"quotes\" 'single' “curly” ‘marks’ «guillemets»",
    "(a:1.2) [b] {c} <lora:x:0.8> --ar 16:9 #tag @name",
    "https://example.com/a?b=c&d=e#f user@example.com",
    "snake_case camelCase kebab-case dotted.name path/to\\file",
    "...---...!!!???,,,;;;:::",
    "a" * 300,
    "supercalifragilisticexpialidocious" * 12,
    "word " * 200,
    "漢字" * 150,
    "🎨" * 100,
    "!" * 100,
]

_WORDS = (
    "a the red Blue GREEN circle square triangle left right of above below small large photo painting cat dog's "
    "astronaut riding on mars, cinematic; lighting! 4k 8K f/1.4 85mm (detailed) [masterpiece] é ü ß ñ 猫 犬 кот 🐱 🚀 "
    "it's don't 1 23 456 7.89 <|endoftext|> </s> <pad> <extra_id_3> ! ? ... -- & * ~ ` ^ | \\ / @ # $ % _ + = '"
).split()
_SEPARATORS = (" ", " ", " ", " ", "  ", "\t", "\n", "", ", ", "   ", "\u00a0", "\u3000")


def prompts(count, seed=0):
    """The special prompts, then random ones: words and arbitrary characters, of 0 to 120 pieces."""
    random_ = random.Random(seed)
    texts = list(SPECIAL_PROMPTS)
    ranges = ((32, 127), (32, 127), (161, 592), (880, 1280), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF))
    while len(texts) < count:
        pieces = []
        for _ in range(random_.choice((1, 3, 8, 20, 60, 120))):
            letters = [chr(random_.randrange(*random_.choice(ranges))) for _ in range(random_.randrange(1, 6))]
            pieces.append(random_.choice(_WORDS) if random_.random() < 0.7 else "".join(letters))
            pieces.append(random_.choice(_SEPARATORS))
        texts.append("".join(pieces))
    return texts


@pytest.fixture(scope="session")
def varied_prompts():
    """700 texts: long, empty, unicode, emoji, repeated spaces, control characters, special tokens inside."""
    return prompts(700)
