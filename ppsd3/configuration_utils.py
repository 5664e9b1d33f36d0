"""JSON in, object out: how a class remembers the arguments it was made with, and how it is remade from them.

Counterpart of diffusers' ``ConfigMixin`` and ``register_to_config``. One difference is on purpose: a key that
the class does not know is an error, never a warning, because a misspelt key is a silently different model.
"""

import functools
import inspect
import json
import os

from .utils.errors import CheckpointNotFoundError, ConfigError
from .utils.files import atomic_write

# Written by diffusers and by us beside the constructor's arguments; they describe the file, not the object.
_METADATA_KEYS = ("_class_name", "_diffusers_version", "_name_or_path", "_ppsd3_version", "_use_default_values")


class FrozenConfig(dict):
    """Read-only dict whose keys are attributes too: ``config.num_layers`` and ``config["num_layers"]``."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The configuration has no key {name!r}; it has {sorted(self)}.") from None

    def _refuse(self, *args, **kwargs):
        raise ConfigError("A configuration is read-only; use register_to_config(key=value) on its owner.")

    __setattr__ = __setitem__ = __delitem__ = update = pop = clear = setdefault = _refuse

    def __reduce__(self):  # dict's default would call the refused __setitem__
        return FrozenConfig, (dict(self),)


def register_to_config(init):
    """Decorator for ``__init__``: stores every argument, defaults included, in ``self.config`` before the body runs."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        # Through object.__setattr__: nn.Layer refuses attributes before its own __init__ has run.
        object.__setattr__(self, "_internal_config", FrozenConfig(arguments))
        init(self, *args, **kwargs)

    return wrapper


class ConfigMixin:
    """Gives a class ``config``, ``from_config``, ``load_config`` and ``save_config``.

    Attributes:
        config_name (str): file name of the JSON, e.g. ``"config.json"``.
        ignored_config_keys (tuple of str): keys that published files carry and that cannot change the result here.
    """

    config_name = None
    ignored_config_keys = ()

    @property
    def config(self):
        """FrozenConfig of the arguments this object was made with."""
        return self._internal_config

    def register_to_config(self, **kwargs):
        """Replaces or adds entries of ``config`` (an object's own bookkeeping, e.g. a scheduler's ``shift``)."""
        object.__setattr__(self, "_internal_config", FrozenConfig({**self._internal_config, **kwargs}))

    @classmethod
    def _known_keys(cls):
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    @classmethod
    def from_config(cls, config, **overrides):
        """Makes the object from ``config`` (dict), with ``overrides`` on top.

        Raises:
            ConfigError: a key is no argument of the class (the message gives the nearest known one), or the
                file says that it belongs to another class of ppsd3.
        """
        return cls(**cls.extract_init_arguments({**config, **overrides}))

    @classmethod
    def extract_init_arguments(cls, config, source="the configuration"):
        """The subset of ``config`` that ``__init__`` takes; every other key must be metadata, else ConfigError."""
        import difflib

        known = cls._known_keys()
        arguments = {}
        for key, value in config.items():
            if key in known:
                arguments[key] = tuple(value) if isinstance(value, list) else value
            elif key not in _METADATA_KEYS and key not in cls.ignored_config_keys:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(known)}."
                raise ConfigError(f"{cls.__name__} does not know the key {key!r} (value {value!r}) of {source}.{hint}")
        return arguments

    @classmethod
    def load_config(cls, path):
        """Reads the JSON at ``path`` (the file, or a directory that holds ``config_name``) as a dict.

        Raises:
            CheckpointNotFoundError: no such file.
            ConfigError: the file is not a JSON object.
        """
        file = os.path.join(path, cls.config_name) if os.path.isdir(path) else path
        return read_json(file, purpose=f"the configuration of {cls.__name__}")

    def to_json_dict(self):
        """``config`` with the class name, as plain JSON values; the form that is saved."""
        from . import __version__

        return {"_class_name": type(self).__name__, "_ppsd3_version": __version__, **_jsonable(dict(self.config))}

    def save_config(self, save_directory):
        """Writes ``config`` to ``save_directory/config_name`` (made if missing, written to a temporary file first)."""
        os.makedirs(save_directory, exist_ok=True)
        text = json.dumps(self.to_json_dict(), indent=2, sort_keys=True) + "\n"
        with atomic_write(os.path.join(save_directory, self.config_name)) as file:
            file.write(text.encode())


def read_json(path, purpose):
    """The JSON object at ``path`` as a dict; ``purpose`` says in the error what the file is for.

    Raises:
        CheckpointNotFoundError, ConfigError
    """
    if not os.path.isfile(path):
        raise CheckpointNotFoundError(
            f"{path} does not exist; it should hold {purpose}. Check the path, or pass `subfolder=` if it is deeper."
        )
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} ({purpose}) is not valid JSON: {error}. Download or write it again.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} ({purpose}) holds a {type(value).__name__}, not a JSON object.")
    return value


def _jsonable(value):
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    return value
