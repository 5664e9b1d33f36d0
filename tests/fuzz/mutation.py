"""What a stranger may do to bytes, texts and JSON values, chosen by a ``random.Random``."""

from __future__ import annotations

import copy
import json
import struct

NUMBERS = (0, 1, -1, 2, 3, 255, 2**15, 2**31 - 1, 2**31, 2**32, -(2**31), 2**53, 2**63 - 1, 2**63, 2**64, 10**9, 10**30)
FLOATS = (0.0, -0.0, 0.5, -0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", " ", "\0", "a", "None", "true", "1", "1e9", "-1", "nan", "..", "../../etc/passwd", "/etc/passwd", "a/b", "~",
    "file:///etc/passwd", "http://127.0.0.1:9/x", "\ud800", "\ufeff", "\u202e", "é" * 10, "\x1b[31m", "{", "[]", "%s%n",
    "a" * 5000, "(" * 3000, "(a+)+$", "\U0001f600", "float16", "torch.float32", "lambda: 1", "__class__", "a\nb", "a\r",
)  # fmt: skip
_WORDS = (
    "sd3",
    "relu",
    "gelu",
    "silu",
    "epsilon",
    "linear",
    "constant",
    "DownEncoderBlock2D",
    "float32",
    "model.safetensors",
)


def number(rng):
    """A number that is small, at the edge of a format, or no number at all."""
    return rng.choice((rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(FLOATS), rng.randrange(-20, 200)))


def text(rng):
    """A text that is empty, odd, long, a path, or another format's."""
    if rng.random() < 0.6:
        return rng.choice(TEXTS)
    alphabet = rng.choice(("ab ", "01.-", "\0\n\t\r\x1b\x7f", "()[]{}:,", "äß中文🙂\u200d\u0301", "/\\.."))
    return "".join(rng.choice(alphabet) for _ in range(rng.choice((1, 3, 10, 100))))


def value(rng, depth=0):
    """Any JSON value."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return number(rng)
    if kind < 4:
        return rng.choice(_WORDS) if rng.random() < 0.2 else text(rng)
    if kind < 6:
        return rng.choice((None, True, False))
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 4)))]
    if kind == 7:
        return [rng.choice((number(rng), text(rng)))] * rng.choice((1, 3, 1000))
    return {text(rng): value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2)))}


def mutated(rng, original):
    """(a JSON value near ``original``, the keys on the way to what was changed)."""
    result, keys = copy.deepcopy(original), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        result, path = _one_change(rng, result)
        keys += [str(key) for key in path if isinstance(key, str)]
    return result, keys


def _one_change(rng, root):
    parent, path = None, []
    node = root
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.5):
        parent = node
        path.append(rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node)))
        node = node[path[-1]]
    if parent is None or rng.random() < 0.02:
        return value(rng), []
    key = path[-1]
    choice = rng.randrange(10)
    if choice < 5:
        parent[key] = _near(rng, node) if rng.random() < 0.4 else value(rng)
    elif choice == 5:
        del parent[key]
    elif choice == 6:
        parent[key] = [node]
    elif choice == 7 and isinstance(parent, dict):
        new = key[:-1] if rng.random() < 0.5 else text(rng)
        parent[new] = parent.pop(key)
        path.append(new)
    elif choice == 8 and isinstance(parent, dict):
        new = text(rng)
        parent[new] = value(rng)
        path.append(new)
    else:
        others = list(parent.values()) if isinstance(parent, dict) else parent
        parent[key] = copy.deepcopy(rng.choice(others))
    return root, path


def _near(rng, node):
    """A value of the same type as ``node``."""
    if isinstance(node, bool) or node is None:
        return not node
    if isinstance(node, (int, float)):
        return rng.choice((node + 1, node - 1, -node, node * 2, node / 2, node * 10**6, str(node), bool(node)))
    if isinstance(node, str):
        return rng.choice((node + "x", node[:-1], node.upper(), node + "\0", "../" + node, node * 100))
    return rng.choice((node + node, node[:1], node[::-1])) if isinstance(node, list) else {}


def json_text(rng, content):
    """The bytes of ``content`` as JSON, now and then not quite."""
    try:
        plain = json.dumps(content)
    except ValueError:  # an integer of too many digits
        plain = "1" * 5000
    choice = rng.randrange(40)
    if choice >= 14:
        return plain.encode()
    deep = rng.choice((2000, 100_000))
    return (
        lambda: plain.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + plain.encode(),
        lambda: plain.replace("e", "\xff").encode("latin-1", "replace"),
        lambda: plain.encode()[: rng.randrange(len(plain) + 1)],
        lambda: plain.encode() + b"\0",
        lambda: b"",
        lambda: b"[" * deep,
        lambda: b'{"a":' * deep,
        lambda: b'{"a":' + b"[" * deep + b"]" * deep + b"}",
        lambda: plain.replace(":", ":" + "9" * rng.choice((30, 5000)), 1).encode(),
        lambda: plain.replace("1", "1e999", 1).encode(),
        lambda: plain.replace("{", '{"a": 1, "a": 2, ', 1).encode(),
        lambda: plain.replace('"', '"\\ud800', 1).encode(),
        lambda: changed_bytes(rng, plain.encode()),
    )[choice]()


def changed_bytes(rng, data, first=0, last=None):
    """``data`` with a few changes between the offsets ``first`` and ``last``."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = min(len(result), len(result) if last is None else last)
        if end <= first:
            return bytes(result)
        at = rng.randrange(first, end)
        choice = rng.randrange(9)
        if choice < 3:
            result[at] ^= 1 << rng.randrange(8)
        elif choice == 3:
            result[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif choice == 4:
            del result[at:]
        elif choice == 5:
            del result[at : at + rng.choice((1, 4, 100))]
        elif choice == 6:
            result[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif choice == 7:
            result[at:at] = result[at : at + rng.choice((1, 8, 1000))]
        else:
            width, order = rng.choice("BHIQ"), rng.choice("<>")
            packed = struct.pack(order + width, rng.choice(NUMBERS) % 256 ** struct.calcsize(width))
            result[at : at + len(packed)] = packed
    return bytes(result)
