"""What an adapter's file holds for one layer: each tensor is checked, used once, and added to the others.

All parts of a layer add up: ``W + strength * (alpha / r * B A + ... + diff)``. Only products of low rank are scaled by
alpha; ``diff``, ``diff_b``, ``w_norm``, ``b_norm`` and rotations are scaled by the strength alone, as kohya's scripts,
LyCORIS and ComfyUI do. (ComfyUI keeps one matrix of a layer, the last that it finds. There is no file for which a sum
is known to be wrong.)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any, NoReturn

import paddle

from ..serialization.tensors import cast, dtype_name, is_floating
from ..utils.errors import CheckpointFormatError, InputError, WeightMismatchError
from .keys import Place
from .layers import Dense, Kronecker, LowRank, Orthogonal, Sum, WeightChange, hadamard
from .network import shape_and_dtype
from .patterns import PatternTable

# Width of a published transformer -> its name.
_WIDTHS = {1536: "SD3-medium or SD3.5-medium", 2432: "SD3.5-large"}


class Scalings:
    """Alphas of a component's layers as PEFT's configuration in a file gives them.

    Args:
        metadata: PEFT's configuration of all components, names prefixed, e.g. ``"transformer.lora_alpha"``.

    Raises:
        CheckpointFormatError: values of another kind, or patterns that are not read.
    """

    def __init__(self, metadata: Mapping[str, Any] | None, component: str, path: str) -> None:
        start = component + "."
        settings = {key[len(start) :]: value for key, value in (metadata or {}).items() if key.startswith(start)}

        def refuse(name: str, wanted: str) -> NoReturn:
            raise CheckpointFormatError(
                f"{path}: its configuration has {start}{name} {settings[name]!r}, not {wanted}."
            )

        patterns = settings.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            refuse("alpha_pattern", "a dict")
        if not isinstance(settings.get("use_rslora", False), bool):
            refuse("use_rslora", "true or false")
        if not _is_number(settings.get("lora_alpha", 1)) and settings["lora_alpha"] is not None:
            refuse("lora_alpha", "a number")
        if not all(map(_is_number, patterns.values())):
            refuse("alpha_pattern", "numbers for modules")
        self.default, self.is_stabilised = settings.get("lora_alpha"), bool(settings.get("use_rslora"))
        try:
            self._patterns = PatternTable(patterns, f"{path}: {start}alpha_pattern")
        except InputError as error:
            raise CheckpointFormatError(str(error)) from error

    def of(self, module: str, rank: int, alpha: float | None = None) -> float:
        """What a product of this rank is multiplied by; ``alpha``: its own in the file."""
        alpha = self._patterns.get(module, self.default) if alpha is None else alpha
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.is_stabilised else rank)


class LayerParts:
    """The tensors of one module's name in a file.

    Args:
        name: the module's name in the file, with its prefix.
        path: what messages call the file.

    Attributes:
        tensors: by part, see :func:`ppsd3.adapters.keys.split_key`.
        keys: part -> the tensor's name in the file.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name, self.path = name, path
        self.tensors: dict[str, paddle.Tensor] = {}
        self.keys: dict[str, str] = {}

    def add(self, part: str, key: str, tensor: paddle.Tensor) -> None:
        """Adds the tensor ``key``, which is the module's ``part``.

        Raises:
            CheckpointFormatError: it is there already under another name, is empty, or is not of finite numbers.
        """
        if part in self.tensors:
            raise CheckpointFormatError(
                f"{self.path}: {self.keys[part]} and {key} are two names of one tensor. Remove one of them."
            )
        if not is_floating(tensor.dtype) and not (part == "alpha" and dtype_name(tensor.dtype) != "bool"):
            raise CheckpointFormatError(
                f"{self.path}: {key} is {dtype_name(tensor.dtype)}; an adapter's tensors are floating-point numbers. "
                "Download it again, or ask who made it."
            )
        if part == "alpha" and tensor.size != 1:
            raise CheckpointFormatError(
                f"{self.path}: {key} has the shape {list(tensor.shape)}; an alpha is one number."
            )
        if 0 in tensor.shape:
            raise CheckpointFormatError(
                f"{self.path}: {key} has the shape {list(tensor.shape)}, that is, nothing in it. Download it again."
            )
        if not bool(cast(tensor, "float32").isfinite().all()):
            raise CheckpointFormatError(
                f"{self.path}: {key} has numbers that are not finite (NaN or infinity). Download or train it again."
            )
        self.tensors[part], self.keys[part] = tensor, key

    def turned(self) -> LayerParts:
        """The same with A and B transposed."""
        other = LayerParts(self.name, self.path)
        other.keys = self.keys
        other.tensors = {
            part: tensor.t() if part in ("down", "up") and tensor.ndim == 2 else tensor
            for part, tensor in self.tensors.items()
        }
        return other

    def make(self, place: Place, layer: Any, scalings: Scalings) -> WeightChange:
        """The adapter of ``layer``, in the dtype that it computes in.

        Raises:
            CheckpointFormatError: tensors are missing, or are none that such a layer can have.
            WeightMismatchError: they are of another shape than the layer's.
        """
        return _Reading(self, place, layer, scalings).result()


class _Reading:
    """One layer's change in the making."""

    def __init__(self, parts: LayerParts, place: Place, layer: Any, scalings: Scalings) -> None:
        self.path, self.name, self.keys = parts.path, parts.name, parts.keys
        self.module, self.rows, self.scalings = place.module, place.rows, scalings
        self.left = dict(parts.tensors)
        self.shape, self.dtype = shape_and_dtype(layer)
        self.is_linear = len(self.shape) == 2
        alpha = self.left.pop("alpha", None)
        self.alpha = None if alpha is None else float(alpha.astype("float32").numpy().reshape(-1)[0])

    def result(self) -> WeightChange:
        changes: list[WeightChange] = [self.full(part) for part in ("diff", "w_norm") if part in self.left]
        if len(self.shape) > 1:
            for marks, make in (
                (("down", "up"), self.low_rank),
                (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), self.hadamard),
                (("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"), self.kronecker),
                (("oft_blocks",), self.orthogonal),
            ):
                if any(mark in self.left for mark in marks):
                    changes.append(make())
        options = {}
        if "magnitude" in self.left and len(self.shape) > 1:
            options["magnitude"] = self.magnitude()
        biases = [self.vector(part) for part in ("diff_b", "b_norm") if part in self.left]
        if self.left:
            kind = "linear layer" if self.is_linear else "convolution" if len(self.shape) > 1 else "norm"
            named = ", ".join(self.keys[part] for part in self.left)
            raise CheckpointFormatError(
                f"{self.path}: {named} cannot be used: {self.module} is a {kind}, and this is not what belongs to one, "
                "or to the other tensors of the layer. Ask who made the file."
            )
        if biases:
            options["bias"] = reduce(operator.add, biases)
        if len(changes) == 1 and (not options or self.takes(changes[0], options)):
            changes[0].put(**options)
            return changes[0]
        return Sum(changes, **options)

    @staticmethod
    def takes(change, options):
        """Whether ``change`` can have the bias itself, which is not scaled."""
        return "bias" not in options or (change.scaling == 1.0 and change.lora_bias is None)

    # ------------------------------------------------------------------------------------------------- the kinds

    def full(self, part):
        key, tensor = self.keys[part], self.left.pop(part)
        wanted = [*self.shape[1:]]
        if self.is_linear and tensor.ndim == 4 and tensor.shape[2:] == [1, 1]:
            tensor = tensor.reshape(tensor.shape[:2])
        if len(self.shape) == 4 and tensor.ndim == 2 and tensor.shape[1] == math.prod(wanted):
            tensor = tensor.reshape([-1, *wanted])
        tensor = self.share(tensor, key)
        self.check(list(tensor.shape), key)
        return Dense(cast(tensor, self.dtype))

    def low_rank(self):
        (down_key, down), (up_key, up) = self.pair("down", "lora_A (lora_down)"), self.pair("up", "lora_B (lora_up)")
        up = self.share(self.flat(up, up_key), up_key)
        down = down if len(self.shape) == 4 and down.ndim == 4 else self.flat(down, down_key)
        rank = self.rank_of(down, up, down_key, up_key)
        scaling = self.scaling(rank)
        if "mid" in self.left and len(self.shape) == 4:
            core, down = self.core("mid", rank, rank), self.flat(down, down_key)
            self.check([up.shape[0], down.shape[1]], up_key, self.shape[:2])
            change = Dense(self.shaped(paddle.einsum("oa,abkl,bi->oikl", up, core, down), up_key), scaling=scaling)
        elif len(self.shape) == 4:
            down = self.shaped(down, down_key, rows=rank)
            self.check([up.shape[0], *self.shape[1:]], up_key)
            change = LowRank(down, up.reshape([*up.shape, 1, 1]), scaling=scaling)
        else:
            self.check([up.shape[0], down.shape[1]], up_key)
            change = LowRank(down, up, scaling=scaling)
        if "bias" in self.left:
            change.put(bias=self.vector("bias"))
        return change

    def hadamard(self):
        factors = []
        for number in (1, 2):
            (a_key, a), (b_key, b) = (self.pair(f"hada_w{number}_{letter}") for letter in "ab")
            if f"hada_t{number}" in self.left and len(self.shape) == 4:
                a, b = self.flat(a, a_key), self.flat(b, b_key)
                self.check([a.shape[1], b.shape[1]], a_key, self.shape[:2])
                core = self.core(f"hada_t{number}", a.shape[0], b.shape[0])
                factors.append((self.shaped(_tucker(core, a, b), a_key), b.shape[0]))
                continue
            a = self.share(self.flat(a, a_key), a_key)
            b = self.unrolled(b, b_key)
            rank = self.rank_of(b, a, b_key, a_key)
            self.check([a.shape[0], b.shape[1]], a_key, [self.shape[0], math.prod(self.shape[1:])])
            factors.append((a, b) if self.is_linear else (self.shaped(paddle.matmul(a, b), a_key), rank))
        (first, one), (second, two) = factors
        if self.is_linear:
            return hadamard(first, one, second, two, scaling=self.scaling(one.shape[0]))
        return Dense(first * second, scaling=self.scaling(one))

    def kronecker(self):
        # Shapes are compared before anything is multiplied out: two vectors in a small file make an endless matrix.
        whole = [self.shape[0] * self.rows[0][1] // len(self.rows), math.prod(self.shape[1:])]
        factors: list[Any] = []
        ranks = []
        for number in (1, 2):
            name = f"lokr_w{number}"
            if name in self.left:
                key = self.keys[name]
                factors.append(self.unrolled(cast(self.left.pop(name), self.dtype), key))
                continue
            (a_key, a), (b_key, b) = (self.pair(f"{name}_{letter}") for letter in "ab")
            a, b = self.flat(a, a_key), self.unrolled(b, b_key)
            if number == 2 and "lokr_t2" in self.left and len(self.shape) == 4:
                core, window = self.core("lokr_t2", a.shape[0], b.shape[0]), math.prod(self.shape[2:])
                self.check_factor([a.shape[1], b.shape[1] * window], whole, a_key)
                factors.append(_tucker(core, a, b).flatten(1))
                ranks.append(b.shape[0])
            else:
                ranks.append(self.rank_of(b, a, b_key, a_key))
                self.check_factor([a.shape[0], b.shape[1]], whole, a_key)
                factors.append(paddle.matmul(a, b))
        first, second = factors
        self.check([first.shape[0] * second.shape[0], first.shape[1] * second.shape[1]], f"{self.name}.lokr", whole)
        # As LyCORIS: alpha has no effect where neither factor is one of low rank.
        scaling = self.scaling(ranks[-1]) if ranks else 1.0
        if self.is_linear and first.shape[0] % self.rows[0][1] == 0:
            return Kronecker(self.share(first, self.name), second, scaling=scaling)
        matrix = self.share(paddle.kron(first, second), self.name)  # rows that no factor has separately
        return Dense(matrix if self.is_linear else self.shaped(matrix, self.name), scaling=scaling)

    def check_factor(self, shape, whole, key):
        """Raises WeightMismatchError if no Kronecker product with a factor of this shape is ``whole``."""
        if any(size % part for size, part in zip(whole, shape)):
            self.check(shape, key, whole)

    def orthogonal(self):
        key, blocks = self.keys["oft_blocks"], self.left.pop("oft_blocks").astype("float32")
        count = self.rows[0][1]
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
            raise CheckpointFormatError(
                f"{self.path}: {key} has the shape {list(blocks.shape)}. ppsd3 reads OFT with one rotation for each "
                "block, [n, b, b], and neither BOFT nor others. Merge it into the model where it loads."
            )
        if blocks.shape[0] % count:
            raise CheckpointFormatError(
                f"{self.path}: {key} rotates rows of several layers ({self.module} and others) together, which cannot "
                "be told apart. Merge it into the model where it loads."
            )
        if self.alpha:  # the largest norm of the skew matrices, for each row
            norm = float((blocks - blocks.transpose([0, 2, 1])).square().sum().sqrt())
            blocks = blocks * min(1.0, self.alpha * blocks.shape[0] * blocks.shape[1] / (norm + 1e-8))
        blocks = self.share(blocks, key)
        self.check([blocks.shape[0] * blocks.shape[1], *self.shape[1:]], key)
        rescale = self.vector("rescale") if "rescale" in self.left else None
        return Orthogonal(blocks, rescale)

    def magnitude(self):
        key, tensor = self.keys["magnitude"], self.left["magnitude"]
        columns = tensor.ndim > 1 and tensor.shape[0] == 1 and tensor.shape[1] != 1
        if columns and (self.is_linear or tensor.shape[1] != self.shape[0]):
            raise CheckpointFormatError(
                f"{self.path}: {key} has magnitudes of columns {list(tensor.shape)}; ppsd3 reads those of rows, "
                "[out, 1]. Train or convert it with wd_on_out=True."
            )
        return self.vector("magnitude")

    # ------------------------------------------------------------------------------------------------- their tensors

    def pair(self, part, called=None):
        """(key, tensor) of a part that has to be there."""
        if part not in self.left:
            raise CheckpointFormatError(
                f"{self.path}: {self.name} has no {called or part} beside its other tensors. Download it again."
            )
        return self.keys[part], cast(self.left.pop(part), self.dtype)

    def vector(self, part):
        """The part as a vector of the layer's rows."""
        key, tensor = self.keys[part], self.left.pop(part)
        tensor = self.share(tensor.reshape([-1]), key)
        self.check(list(tensor.shape), key, self.shape[:1])
        return cast(tensor, self.dtype)

    def flat(self, tensor, key):
        """The tensor as a matrix: that of a convolution of 1x1 is one."""
        if tensor.ndim == 4 and tensor.shape[2:] == [1, 1]:
            tensor = tensor.reshape(tensor.shape[:2])
        if tensor.ndim != 2:
            raise WeightMismatchError(
                f"{self.path}: {key} has the shape {list(tensor.shape)}, and a matrix is needed for {self.module}. "
                "Download the file again, or ask who made it."
            )
        return tensor

    def unrolled(self, tensor: paddle.Tensor, key: str) -> paddle.Tensor:
        """The tensor as a matrix, with the windows of a convolution in its rows."""
        return tensor.flatten(1) if len(self.shape) == 4 and tensor.ndim == 4 else self.flat(tensor, key)

    def shaped(self, tensor, key, rows=None):
        """The tensor in the shape of the convolution's weight, with ``rows`` rows."""
        wanted = [self.shape[0] if rows is None else rows, *self.shape[1:]]
        if tensor.shape[0] != wanted[0] or tensor.size != math.prod(wanted):
            self.check(list(tensor.shape), key, wanted)
        return tensor.reshape(wanted)

    def core(self, part, *ranks):
        """The core [r, r, k, k] of a decomposition of a convolution."""
        key, tensor = self.pair(part)
        self.check(list(tensor.shape), key, [*ranks, *self.shape[2:]])
        return tensor

    def rank_of(self, down, up, down_key, up_key):
        if up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise WeightMismatchError(
                f"{self.path}: {down_key} is {list(down.shape)} and {up_key} {list(up.shape)}, which are not [r, in] "
                "and [out, r]. Download the file again, or ask who made it."
            )
        return down.shape[0]

    def scaling(self, rank):
        scaling = self.scalings.of(self.module, rank, self.alpha)
        if scaling == 0:
            raise CheckpointFormatError(
                f"{self.path}: the alpha of {self.name} is 0, by which the adapter would change nothing. Leave the "
                "alpha out of the file, or correct it."
            )
        return scaling

    def share(self, tensor, key):
        """The parts of ``tensor`` along its first axis that are this layer's, concatenated."""
        if self.rows == ((0, 1),):
            return tensor
        count = self.rows[0][1]
        rows = tensor.shape[0] if tensor.ndim else 1
        if rows % count:
            raise WeightMismatchError(f"{self.path}: {key} has {rows} rows, which are not {count} equal parts.")
        parts = tensor.chunk(count)
        chosen = [parts[index] for index, _ in self.rows]
        return paddle.concat(chosen) if len(chosen) > 1 else chosen[0].clone()

    def check(self, made, key, wanted=None):
        """Raises WeightMismatchError if the shape ``made`` is not the layer's."""
        wanted = self.shape if wanted is None else wanted
        if list(made) == list(wanted):
            return
        width = next((size for size in made if size in _WIDTHS and size not in wanted), None)
        if width:
            cause = f"It is made for {_WIDTHS[width]}, another size of Stable Diffusion 3: load it into that one."
        elif list(made) == list(wanted)[::-1]:
            cause = "It is transposed. Convert it, or ask who made it."
        else:
            cause = "It is made for layers of other sizes. Check which model it is for."
        raise WeightMismatchError(
            f"{self.path}: {key} makes a change of shape {list(made)} for {self.module}, where {list(wanted)} is "
            f"needed. {cause}"
        )


def _tucker(core: paddle.Tensor, a: paddle.Tensor, b: paddle.Tensor) -> Any:
    """``sum over i, j of core[i, j] a[i, p] b[j, q]``: [p, q, k, k]."""
    return paddle.einsum("ijkl,ip,jq->pqkl", core, a, b)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
