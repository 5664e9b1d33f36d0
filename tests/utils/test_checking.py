"""A declared type is the check: what fits, what is converted, and how the rest is refused."""

import fractions
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Callable, Literal, Optional, Union

import numpy as np
import paddle
import pytest
from PIL import Image

from ppsd3.utils.checking import Range, checks_arguments, declared_types, describe_type, fit
from ppsd3.utils.errors import ConfigError, InputError, UnknownArgumentError

WHOLE, PART = Annotated[int, Range(1)], Annotated[float, Range(0, 1)]
TENSOR = Annotated[Optional[paddle.Tensor], Range()]
TEXTS = Union[str, list[str], None]
PICTURES = Union[Image.Image, np.ndarray, paddle.Tensor, list[Image.Image], list[np.ndarray], None]
CALLBACK = Optional[Callable[[Any, int, paddle.Tensor, dict[str, paddle.Tensor]], dict[str, Any]]]


@pytest.mark.parametrize(
    "kind, value, expected",
    [
        (WHOLE, 3, 3),
        (WHOLE, np.int64(3), 3),
        (WHOLE, np.array(3), 3),
        (WHOLE, paddle.to_tensor(3), 3),
        (PART, 1, 1),
        (PART, np.float32(0.5), 0.5),
        (float, fractions.Fraction(1, 4), 0.25),
        (float, np.array(0.5), 0.5),
        (Annotated[float, Range(most=math.inf)], math.inf, math.inf),
        (bool, np.bool_(True), True),
        (TEXTS, ("a", "b"), ["a", "b"]),
        (TEXTS, None, None),
        (list[float], np.array([1.0, 0.5]), [1.0, 0.5]),
        (Sequence[int], (1, 2), (1, 2)),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Mapping[str, Any], {}, {}),
        (Literal["a", 1], "a", "a"),
        (Annotated[Optional[int], Range(1)], None, None),
        (Union[Annotated[int, Range(1)], None], 2, 2),
        (Any, ..., ...),
        ("a name of a type checker", ..., ...),
    ],
)
def test_what_fits(kind, value, expected):
    found = fit("x", value, kind)
    assert found == expected and type(found) is type(expected)


def test_what_fits_stays_the_object_that_it_is():
    tensor, pictures, texts = paddle.ones([2]), [Image.new("RGB", (1, 1))], ["a"]
    for value, kind in ((tensor, TENSOR), (tensor, paddle.Tensor), (pictures, PICTURES), (texts, TEXTS)):
        assert fit("x", value, kind) is value
    assert fit("x", print, CALLBACK) is print


@pytest.mark.parametrize(
    "kind, value, message",
    [
        (WHOLE, True, "`x` is True; it has to be a whole number of at least 1."),
        (WHOLE, 0, "`x` is 0; it has to be a whole number of at least 1."),
        (WHOLE, 28.0, "`x` is 28.0; it has to be a whole number of at least 1. Pass 28."),
        (WHOLE, "28", "`x` is '28'; it has to be a whole number of at least 1. Pass 28 without quotes."),
        (WHOLE, np.array([1]), "`x` is a numpy ndarray [1] of int64; it has to be a whole number of at least 1."),
        (PART, math.nan, "`x` is nan; it has to be a number from 0 to 1."),
        (PART, 1j, "`x` is 1j; it has to be a number from 0 to 1."),
        (float, math.inf, "`x` is inf; it has to be a number."),
        (float, 10**400, "`x` is 100000000000000000...0000000000000000000; it has to be a number."),
        (Annotated[float, Range(above=0)], 0, "`x` is 0; it has to be a number above 0."),
        (Annotated[float, Range(0, below=1)], 1, "`x` is 1; it has to be a number of at least 0 and below 1."),
        (Union[Annotated[int, Range(1)], None], 0, "`x` is 0; it has to be a whole number of at least 1 or None."),
        (bool, 1, "`x` is 1; it has to be True or False."),
        (TEXTS, b"a", "`x` is b'a'; it has to be a str, a list of str or None. Decode it: value.decode()."),
        (TEXTS, ["a", None], "`x[1]` is None; it has to be a str."),
        (Annotated[list[float], Range(0, 1)], [1, 7.0], "`x[1]` is 7.0; it has to be a number from 0 to 1."),
        (Optional[list[int]], "12", "a list of whole numbers or None. Pass 12 without quotes."),
        (TENSOR, np.array([math.nan]), "`x` holds NaN or infinity; it has to be a tensor or None."),
        (TENSOR, np.ones(1, complex), "`x` is a numpy ndarray [1] of complex128; it has to be a tensor or None."),
        (Annotated[np.ndarray, Range(axes=(3, 4))], np.zeros(3), "it has to be an array of 3 or 4 axes."),
        (PICTURES, [3], "`x[0]` is 3; it has to be a PIL picture or an array."),
        (CALLBACK, lambda: None, "`x` is a function; it has to be a function of 4 arguments or None."),
        (CALLBACK, int, "it has to be a function of 4 arguments or None."),
        (tuple[int, int], (1, 2, 3), "`x` is (1, 2, 3); it has to be a list of 2 whole numbers."),
        (dict[str, int], {"a": "b"}, "`x['a']` is 'b'; it has to be a whole number."),
        (Literal["a", "b"], "c", "`x` is 'c'; it has to be 'a' or 'b'."),
        (ConfigError, object(), "`x` is a object; it has to be a ConfigError."),
    ],
)  # fmt: skip
def test_refusals(kind, value, message):
    with pytest.raises(InputError) as caught:
        fit("x", value, kind)
    assert message in str(caught.value)


def test_the_error_and_more_of_it():
    with pytest.raises(ConfigError, match=r"`layers` is 0; .* or less than that\.$"):
        fit("layers", 0, int, ConfigError, limits=Range(1), remedy=" or less than that.")


class Base:
    number: "Annotated[int, Range(1)] | None"


class Derived(Base):
    number: int  # another default, the same limits
    other: "NameOfATypeChecker | None"  # noqa: F821


def test_declared_types():
    kinds = declared_types(Derived)
    assert typing.get_args(kinds["number"])[1:] == (type(None),) or kinds["number"] is int
    assert kinds["other"] is Any

    def function(a: "int | str", b: "list[int | None]" = (), *more: int, **options: str) -> "int":
        return 0

    assert declared_types(function) == {"a": Union[int, str], "b": list[Optional[int]]}
    assert describe_type(declared_types(function)["b"]) == "a list of whole numbers or None"


class Checked:
    @checks_arguments
    def method(self, count: int, *, scale: float = math.inf, text: Optional[str] = None, **more: Any) -> tuple:
        """What it takes."""
        return count, scale, text


def test_the_decorator():
    checked = Checked()
    assert checked.method(np.int32(2)) == (2, math.inf, None)  # a default fits by itself
    assert checked.method(1, scale=np.float64(0.5), text="a", other=3) == (1, 0.5, "a")
    assert Checked.method.__doc__ == "What it takes."
    with pytest.raises(InputError, match="`scale` is inf"):
        checked.method(1, scale=float("inf"))
    for args, message in (((), "missing a required argument"), ((1, 2), "too many positional arguments")):
        with pytest.raises(UnknownArgumentError, match=f"Checked.method: {message}"):
            checked.method(*args)


def test_the_decorator_names_the_nearest():
    @checks_arguments
    def scale(value: float) -> float:
        return value

    with pytest.raises(UnknownArgumentError, match=r"Did you mean .value.\?"):
        scale(valeu=1.0)


@pytest.mark.parity
def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        found = fit("x", torch.arange(4).reshape(2, 2).to(dtype), TENSOR)
        assert isinstance(found, paddle.Tensor) and found.dtype == getattr(paddle, str(dtype).split(".")[1])
        np.testing.assert_array_equal(found.astype("float32").numpy(), [[0, 1], [2, 3]])
    assert fit("x", torch.tensor(0.5), PART) == 0.5 and fit("x", torch.ones(2), list[float]) == [1.0, 1.0]
    with pytest.raises(InputError, match="holds NaN"):
        fit("x", torch.full([2], math.nan), TENSOR)
