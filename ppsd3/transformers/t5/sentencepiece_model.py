"""Reads ``spiece.model``: the five fields of SentencePiece's ``ModelProto`` that tokenizing needs.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece). A reader of the wire format is
thirty lines; protobuf would be one more dependency, and the sentencepiece library does not hand out the normalization
rules.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

from ...utils.errors import CheckpointFormatError

_UNIGRAM = 1  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type


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
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise CheckpointFormatError(f"{source} is no SentencePiece model or is cut short; get it again.") from error
    if not pieces:
        raise CheckpointFormatError(f"{source} holds no pieces, so it is no SentencePiece model; download it again.")
    if trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise CheckpointFormatError(f"{source} is not a unigram model; T5 needs one trained with model_type=unigram.")
    return SentencePieceModel(
        pieces=[(piece, score) for piece, score, _ in pieces],
        unk_id=trainer.get(40, 0),
        charsmap=normalizer.get(2) or None,
        added_tokens=[
            {"content": piece, "normalized": False, "special": kind == _CONTROL}
            for piece, _, kind in pieces
            if kind in (_CONTROL, _USER_DEFINED)
        ],
    )


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
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
