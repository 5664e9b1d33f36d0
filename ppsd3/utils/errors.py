"""The error types of ppsd3.

Every message names the file, tensor or argument, and the remedy. Each type also derives from the built-in exception
that a diffusers user would catch, so ``except ValueError`` keeps working.
"""

from __future__ import annotations


class PPSD3Error(Exception):
    """Base of all errors that ppsd3 raises on purpose."""


class InputError(PPSD3Error, ValueError):
    """An argument of a public call is missing, contradicts another one, or has a value that cannot be used."""


class UnknownArgumentError(InputError, TypeError):
    """A call names an argument that it does not have."""


class UnknownNameError(PPSD3Error, AttributeError):
    """A module or an object has no such name; the message says what to use instead."""


class NoSuchImportError(PPSD3Error, ImportError):
    """A name or a module is imported that ppsd3 does not have; the message says what to use instead."""


class ConfigError(PPSD3Error, ValueError):
    """A configuration file or a constructor argument holds an unknown key or an impossible value."""


class NotFiniteError(PPSD3Error, FloatingPointError):
    """A network produced NaN or infinity."""


class RankLostError(PPSD3Error, ConnectionError):
    """Another one of several processes that work together has ended or does not answer."""


class CheckpointError(PPSD3Error):
    """Base of the errors about checkpoints."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A path, a hub id, a component or a shard does not exist."""

    def __str__(self) -> str:  # FileNotFoundError formats (errno, strerror); ours is one sentence
        return str(self.args[0]) if self.args else ""


class CheckpointFormatError(CheckpointError, ValueError):
    """A file exists but is truncated, is a pickle, or is not what its name says."""


class DiskError(CheckpointError, OSError):
    """A file could not be written, because its disk is full or broken; the message says what is missing."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WeightMismatchError(CheckpointError, ValueError):
    """Tensors are missing, unexpected, or of another shape than the model's."""


class KernelError(PPSD3Error, RuntimeError):
    """A native kernel could not do its work."""


class KernelMemoryError(KernelError, MemoryError):
    """A native kernel could not allocate its working memory."""
