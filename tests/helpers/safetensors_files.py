"""Safetensors files of every kind, sound and broken: name -> (whether a reader accepts it, its bytes)."""

import json
import struct

DATA = bytes(range(1, 9))


def entry(dtype="F32", shape=(2,), start=0, stop=8, **fields):
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop], **fields}


def file(header, data=DATA, length=None):
    """The bytes of a file: ``header`` is an object, JSON text or bytes; ``length`` is what the file says of it."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(*args, data=DATA, **fields):
    """A file of one tensor, ``a``."""
    return file({"a": entry(*args, **fields)}, data)


def two(first, second, data=DATA):
    return file({"a": entry("U8", *first), "b": entry("U8", *second)}, data)


def with_metadata(value):
    return file({"__metadata__": value, "a": entry()})


def _text(value):
    return json.dumps(value)


_ENTRY, _OTHER = _text(entry()), _text(entry("F64", (1,)))
_HEADER = f'{{"a":{_ENTRY}}}'

_SOUND = {
    "good_f32": one(),
    "good_meta": with_metadata({"format": "pt", "": "\u00e9"}),
    "no_tensors": file({}, b""),
    "empty_tensor": one("F32", (0, 3), 0, 0, data=b""),
    "empty_tensor_beside": file({"a": entry(), "b": entry("F32", (0,), 0, 0)}),
    "empty_tensor_at_end": file({"a": entry(), "b": entry("F32", (0,), 8, 8)}),
    "zero_d": one("F64", ()),
    "bf16": one("BF16", (4,)),
    "fp8_e4m3": one("F8_E4M3", (8,)),
    "fp8_e5m2": one("F8_E5M2", (8,)),
    "f8_e8m0": one("F8_E8M0", (8,)),
    "f8_e4m3fnuz": one("F8_E4M3FNUZ", (8,)),
    "f4": one("F4", (16,)),
    "f6_e2m3": one("F6_E2M3", (4,), 0, 3, data=DATA[:3]),
    "c64": one("C64", (1,)),
    "u16": one("U16", (4,)),
    "u32": one("U32", (2,)),
    "u64": one("U64", (1,)),
    "bool_value_2": one("BOOL", (8,), data=b"\2" * 8),
    "dup_keys_same": file(f'{{"a":{_ENTRY},"a":{_ENTRY}}}'),
    "extra_field": one(offset_unit="byte"),
    "meta_null": with_metadata(None),
    "leading_space": file("  " + _HEADER),
    "trailing_space": file(_HEADER + "   "),
    "misaligned_f32": file({"a": entry("U8", (1,), 0, 1), "b": entry("F32", (1,), 1, 5)}, DATA[:5]),
    "misaligned_data_start": file(_HEADER + " " * ((3 - len(_HEADER)) % 8)),
    "unsorted_keys": file({"b": entry("U8", (4,), 4, 8), "a": entry("U8", (4,), 0, 4)}),
    "empty_name": file({"": entry()}),
    "name_metadata_prefix": file({"__metadata__2": entry()}),
    "huge_empty_shape": one("F32", (0, 1 << 40), 0, 0, data=b""),
    "huger_empty_shape": one("F32", (0, (1 << 64) - 1), 0, 0, data=b""),
    "a_thousand_axes": one("F64", (1,) * 1000),
}

_BROKEN = {
    "unknown_dtype": one("F99"),
    "very_long_dtype": one("F" * 100_000),
    "overlap": two(((6,), 0, 6), ((4,), 4, 8)),
    "same_range_twice": two(((8,), 0, 8), ((8,), 0, 8)),
    "hole_between": two(((3,), 0, 3), ((3,), 5, 8)),
    "hole_at_start": one("F32", (1,), 4, 8),
    "trailing_bytes": one("F32", (1,), 0, 4),
    "past_end": one("F32", (4,), 0, 16),
    "one_byte_short": one(data=DATA[:7]),
    "size_vs_shape": one("F32", (3,)),
    "reversed_offsets": one("F32", (2,), 8, 0),
    "negative_shape": one("F32", (-2, -1)),
    "negative_offset": one("F32", (2,), -8, 0),
    "float_shape": one("F32", (2.0,)),
    "bool_shape": one("F64", (True,)),
    "string_shape": file({"a": {**entry(), "shape": "2"}}),
    "overflow_product_wraps_to_8": one("U8", ((1 << 61) + 1, 8)),
    "overflow_2_64": one("F32", (1 << 32, 1 << 32), 0, 0, data=b""),
    "overflow_shape_2_62x4_u8": one("U8", (1 << 62, 4), 0, 0, data=b""),
    "dup_keys_diff": file(f'{{"a":{_text(entry("U8", (4,), 0, 4))},"a":{_text(entry("U8", (4,), 4, 8))}}}'),
    "dup_metadata": file(f'{{"__metadata__":{{"x":"1"}},"__metadata__":{{"x":"2"}},"a":{_ENTRY}}}'),
    "dup_field": file(_HEADER.replace('"dtype"', '"dtype": "F32", "dtype"')),
    "missing_field": file({"a": {"dtype": "F32", "shape": [2]}}),
    "three_offsets": file({"a": {**entry(), "data_offsets": [0, 4, 8]}}),
    "meta_not_str": with_metadata({"step": 1}),
    "meta_list": with_metadata(["pt"]),
    "meta_nested": with_metadata({"config": {"depth": "24"}}),
    "non_utf8_name": file(_HEADER.replace("a", "\xff").encode("latin-1")),
    "utf16_header": file(_HEADER.encode("utf-16-le")),
    "utf8_bom": file(b"\xef\xbb\xbf" + _HEADER.encode()),
    "lone_surrogate": file(_HEADER.replace("a", "\\ud800", 1)),
    "json_NaN": one(scale=float("nan")),
    "trailing_nul": file(_HEADER + "\0"),
    "header_is_list": file("[]", b""),
    "header_len_huge": file(_HEADER, length=(1 << 64) - 1),
    "header_len_101MB": file(_HEADER, length=101_000_000),
    "header_len_0": file("", b""),
    "empty_file": b"",
    "seven_bytes": DATA[:7],
    "deep_nesting": file("[" * 1_000_000, b""),
    "deep_nesting_in_an_entry": file('{"a":{"dtype":"F32","shape":' + "[" * 100_000, b""),
    "deep_nesting_in_the_metadata": file('{"__metadata__":{"a":' * 50_000, b""),
}

KINDS = {name: (True, data) for name, data in _SOUND.items()} | {name: (False, data) for name, data in _BROKEN.items()}
