"""Base of the outputs of pipelines and models: dataclasses that can also be read as a tuple or a dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar


class BaseOutput:
    """Base of the dataclasses that models and pipelines return.

    ``out.sample``, ``out["sample"]`` and ``out[0]`` are the same; fields that are None are left out of the tuple, as in
    diffusers.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # subclasses are dataclasses

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order of definition."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if value is not None)

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())
