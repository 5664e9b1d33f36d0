"""What pipelines and models return: named fields that can also be read as a tuple or a dict."""

import dataclasses


class BaseOutput:
    """Base of the dataclasses that models and pipelines return.

    ``out.sample``, ``out["sample"]`` and ``out[0]`` are the same thing; fields that are None are left out of
    the tuple, as in diffusers.
    """

    def to_tuple(self):
        """The fields that are not None, in order of definition."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if value is not None)

    def keys(self):
        """Names of the fields that are not None."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]

    def __getitem__(self, key):
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self):
        return iter(self.to_tuple())

    def __len__(self):
        return len(self.to_tuple())
