"""Reads and writes ``spiece.model``: the fields of SentencePiece's ``ModelProto`` that tokenizing needs.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece). A reader of the wire format is
thirty lines; protobuf would be one more dependency, and the sentencepiece library does not hand out the normalization
rules.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ...utils.errors import CheckpointFormatError

_UNIGRAM = 1  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece.Type


@dataclasses.dataclass
class SentencePieceModel:
    """A unigram model.

    Attributes:
        pieces: token and log probability, in order of id.
        unk_id: id of the unknown piece.
        charsmap: compiled normalization rules.
        added_tokens: control symbols (special) and user-defined ones, which are never split.
    """

    pieces: list
    unk_id: int
    charsmap: Any
    added_tokens: list


def read_sentencepiece_model(data: bytes, source: str) -> SentencePieceModel:
    """Parses the bytes of a ``spiece.model``; ``source`` names the file in errors.

    Raises:
        CheckpointFormatError: not a SentencePiece model, or not a unigram one.
    """
    try:
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer = dict(pair for number, value in fields if number == 2 for pair in _fields(value))
        normalizer = dict(pair for number, value in fields if number == 3 for pair in _fields(value))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise CheckpointFormatError(f"{source} is no SentencePiece model or is cut short; get it again.") from error
    if not pieces:
        raise CheckpointFormatError(f"{source} holds no pieces, so it is no SentencePiece model; download it again.")
    if trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise CheckpointFormatError(f"{source} is not a unigram model; T5 needs one trained with model_type=unigram.")
    unk_id, charsmap = trainer.get(40, 0), normalizer.get(2) or None
    if not isinstance(unk_id, int) or unk_id >= len(pieces) or not isinstance(charsmap, (bytes, type(None))):
        raise CheckpointFormatError(f"{source} is no SentencePiece model, or is damaged; get it again.")
    return SentencePieceModel(
        pieces=[(piece, score) for piece, score, _ in pieces],
        unk_id=unk_id,
        charsmap=charsmap,
        added_tokens=[
            {"content": piece, "normalized": False, "special": kind == _CONTROL}
            for piece, _, kind in pieces
            if kind in (_CONTROL, _USER_DEFINED)
        ],
    )


def write_sentencepiece_model(
    pieces: Sequence[tuple[str, float]], unk_id: int | None, control: Collection[str], charsmap: bytes | None
) -> bytes | None:
    """The bytes of a ``spiece.model`` of a unigram vocabulary; None if SentencePiece cannot hold it.

    It holds no piece twice, no empty one, and one for what is unknown.

    Args:
        pieces: token and log probability, in order of id.
        unk_id: of the unknown piece.
        control: tokens that no text becomes, e.g. ``</s>``.
        charsmap: compiled normalization rules; None for no normalization.
    """
    names = [piece for piece, _ in pieces]
    if unk_id is None or not 0 <= unk_id < len(names) or len(set(names)) < len(names) or "" in names:
        return None
    kinds = dict.fromkeys(control, _CONTROL)
    kinds[names[unk_id]] = _UNKNOWN
    ids = {name: names.index(name) if name in names else -1 for name in ("<s>", "</s>", "<pad>")}
    # TrainerSpec: model_type, vocab_size, unk_id, bos_id, eos_id, pad_id, unk_piece
    trainer = _field(3, _UNIGRAM) + _field(4, len(names)) + _field(40, unk_id)
    trainer += _field(41, ids["<s>"]) + _field(42, ids["</s>"]) + _field(43, ids["<pad>"])
    trainer += _field(45, names[unk_id].encode())
    # NormalizerSpec: name, precompiled_charsmap; the rest (a space before the text, none twice) is the default
    normalizer = _field(1, b"nmt_nfkc" if charsmap else b"identity") + _field(2, charsmap or b"")
    listed = b"".join(
        _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kinds.get(name, _NORMAL)))
        for name, score in pieces
    )
    return listed + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | bytes) -> bytes:
    """A varint field, or one of bytes."""
    if isinstance(value, bytes):
        return _as_varint(number << 3 | 2) + _as_varint(len(value)) + value
    return _as_varint(number << 3) + _as_varint(value)


def _as_varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers in two's complement
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def check_charsmap(rules: bytes) -> None:
    """Raises CheckpointFormatError if compiled normalization rules lead outside of themselves, where Rust would panic.

    They are a trie as an array of 32-bit units (Darts, a double array), its size in bytes before it, and texts that end
    in zero bytes behind it. The unit of a place says which places the next bytes lead to, or which text begins where.
    """
    size = int.from_bytes(rules[:4], "little")
    count, texts = size // 4, np.frombuffer(rules[4 + size :], np.uint8)
    if len(rules) < 4 + size or not count or not len(texts):
        raise CheckpointFormatError("The normalization rules are cut short.")
    units = np.frombuffer(rules, "<u4", count, offset=4)
    base = np.arange(count, dtype=np.uint32) ^ (units >> 10 << ((units & 1 << 9) >> 6))
    is_place = units >> 31 == 0
    is_place[0] = True
    inside = (base | 0xFF) < count
    ends = base[is_place & inside & (units & 1 << 8 > 0)]
    starts = units[ends] & 0x7FFF_FFFF
    if not inside[is_place].all() or (starts >= len(texts)).any() or (texts[starts] & 0xC0 == 0x80).any():
        raise CheckpointFormatError("The normalization rules are damaged.")


def _piece(message):
    """``(text, score, type)`` of one SentencePiece message."""
    fields = dict(_fields(message))
    return fields[1].decode("utf-8"), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, _NORMAL)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields ``(field number, value)``: int for varints, bytes for everything else."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
        else:
            if wire_type == 2:
                length, position = _varint(message, position)
            else:
                length = {1: 8, 5: 4}.get(wire_type)
            if length is None or position + length > len(message):
                raise ValueError("malformed field")
            value, position = message[position : position + length], position + length
        yield number, value


def _varint(message, position):
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
