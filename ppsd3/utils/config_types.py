"""Types of constructors' arguments, with the limits that configurations are held to.

Limits are far beyond published networks (in brackets), and low enough that the names and shapes of the largest network
that they allow take seconds and hardly any memory: these are compared with a file, or with free memory, before more is
done.
"""

from __future__ import annotations

from typing import Annotated

from .checking import Range

# Numbers of things
Layers = Annotated[int, Range(1, 128)]  # one after the other [38]
BlocksOfOneSize = Annotated[int, Range(1, 16)]  # of an autoencoder [3]
Heads = Annotated[int, Range(1, 1024)]  # [64]
Width = Annotated[int, Range(1, 1 << 17)]  # channels or features [10240]
HeadWidth = Annotated[int, Range(1, 1024)]  # [128]
Groups = Annotated[int, Range(1, 1 << 17)]  # [32]
VocabularySize = Annotated[int, Range(1, 1 << 22)]  # [49408]
TokenId = Annotated[int, Range(0, 1 << 22)]
Positions = Annotated[int, Range(1, 1 << 16)]  # of tokens [77]
Buckets = Annotated[int, Range(4, 1 << 12)]  # [32]
Steps = Annotated[int, Range(1, 1_000_000)]  # that a schedule is divided into [1000]
Tokens = Annotated[int, Range(1, 1 << 24)]  # of a picture [4096]
Index = Annotated[int, Range(0, 1 << 16)]

# Sizes of pictures
Pixels = Annotated[int, Range(1, 1 << 14)]  # of a side, or latents of it [1024]
PatchSide = Annotated[int, Range(1, 256)]  # [16]
PositionTable = Annotated[int, Range(1, 1 << 13)]  # side of a stored table [384]

# Real numbers
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Epsilon = Annotated[float, Range(0, 1e-3)]  # beside a variance; Paddle takes no more [1e-5]
Share = Annotated[float, Range(0, 1)]
Shift = Annotated[float, Range(1e-4, 1e4)]  # of a schedule, as a factor [3]
LogShift = Annotated[float, Range(-9, 9)]  # of a schedule, as its logarithm [1.15]
