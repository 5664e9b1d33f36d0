"""Constructor arguments as a configuration: stored in ``config``, saved as JSON, and turned into an object again.

Counterpart of diffusers' ``ConfigMixin`` and ``register_to_config``. The one difference: an unknown key is an error,
because with a warning a misspelt key would silently make a different model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar, cast

from .utils.checking import bind, declared_types, fit, shown
from .utils.elsewhere import nearest
from .utils.errors import ConfigError
from .utils.files import atomic_write
from .utils.hub import resolve_small_file
from .utils.json_files import read_json
from .utils.keywords import HUB_KEYWORDS, LOADING, takes_keywords_of
from .utils.pipeline_index import named_class
from .utils.recognition import explain_class
from .utils.threads import process_wide
from .utils.types import PathLike

if TYPE_CHECKING:
    from typing_extensions import Self

Init = TypeVar("Init", bound=Callable[..., None])

# Keys beside the constructor's arguments that describe the file, not the object: among them the versions of the
# libraries that wrote it (_diffusers_version, _ppdiffusers_version, paddlenlp_version, ...).
_METADATA_KEY = re.compile(r"_class_name|_name_or_path|_use_default_values|_?[a-z0-9]+_version")


class FrozenConfig(dict[str, Any]):
    """Read-only dict whose keys are attributes too: ``config.num_layers`` and ``config["num_layers"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The configuration has no key {name!r}; it has {sorted(self)}.") from None

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError("A configuration is read-only; use register_to_config(key=value) on its owner.")

    if not TYPE_CHECKING:  # dict declares other signatures
        __setattr__ = __setitem__ = __delitem__ = update = pop = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:  # dict's default would call the refused __setitem__
        return FrozenConfig, (dict(self),)


def register_to_config(init: Init) -> Init:
    """Decorator of ``__init__``: checks all arguments, defaults included, against the types and ranges that they are
    annotated with, and stores them in ``self.config``, before the body runs. A numpy number becomes Python's.

    Raises:
        ConfigError: (by ``__init__``) a value does not fit.
        UnknownArgumentError: (by ``__init__``) an argument is unknown, missing or given twice.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = bind(signature, (self, *args), kwargs, type(self).__name__)
        kinds = declared_types(init)
        for name, value in bound.arguments.items():
            if name in kinds:
                bound.arguments[name] = fit(name, value, kinds[name], ConfigError)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        # Through object.__setattr__: nn.Layer refuses attributes before its own __init__ has run.
        object.__setattr__(self, "_internal_config", FrozenConfig(arguments))
        with process_wide:  # another thread's LazyGuard would leave parameters without memory
            init(*bound.args, **bound.kwargs)

    return cast(Init, wrapper)  # with the constructor's own signature


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Errors about a configuration begin with ``source``, the file that it is from, if they do not have it already."""
    try:
        yield
    except ConfigError as error:
        if source in str(error):
            raise
        raise ConfigError(f"{source}: {error}") from error


class ConfigMixin:
    """Gives a class ``config``, ``from_config``, ``load_config`` and ``save_config``.

    Attributes:
        config_name: file name of the JSON, e.g. ``"config.json"``.
        ignored_config_keys: keys of published files that cannot change the result here.
        absent_features: keys of published files for what the class does not have; null there means to do without.
    """

    config_name: str
    ignored_config_keys: tuple[str, ...] = ()
    absent_features: tuple[str, ...] = ()
    _internal_config: FrozenConfig

    @property
    def config(self) -> FrozenConfig:
        """The arguments that this object was made with."""
        return self._internal_config

    def register_to_config(self, **kwargs: Any) -> None:
        """Replaces or adds entries of ``config``, e.g. a scheduler's ``shift``."""
        object.__setattr__(self, "_internal_config", FrozenConfig({**self._internal_config, **kwargs}))

    @classmethod
    def _known_keys(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    @classmethod
    @takes_keywords_of(LOADING)
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """The object that ``config`` describes, with ``overrides`` on top.

        Raises:
            ConfigError: a key is not an argument of the class (the message gives the nearest one), or a value is not
                of the argument's type or out of its range.
        """
        return cls(**cls.extract_init_arguments({**config, **overrides}))

    @classmethod
    def extract_init_arguments(cls, config: Mapping[str, Any], source: str = "the configuration") -> dict[str, Any]:
        """The entries of ``config`` that ``__init__`` takes. Raises ConfigError if another one is not metadata."""
        known, named = cls._known_keys(), named_class(config)
        foreign = explain_class(source, named)
        if foreign is not None:
            raise ConfigError(foreign)
        arguments = {}
        for key, value in config.items():
            if key in known:
                arguments[key] = tuple(value) if isinstance(value, list) else value
            elif key in cls.absent_features:
                if value is not None:
                    raise ConfigError(
                        f"{cls.__name__} has no {key}, which {source} sets to {shown(value)}: no Stable Diffusion 3 "
                        "has such a network. Load it with the library that wrote it."
                    )
            elif key not in cls.ignored_config_keys and not _METADATA_KEY.fullmatch(key):
                hint = nearest(key, known, f"Known keys: {', '.join(known)}.")
                if named not in (None, cls.__name__):
                    hint = f"It is of a {named[:80]}: load it with its class, or check `subfolder`."
                raise ConfigError(
                    f"{cls.__name__} does not know the key {shown(key)} (value {shown(value)}) of {source}. {hint}"
                )
        return arguments

    @classmethod
    @takes_keywords_of(LOADING, also=HUB_KEYWORDS)
    def load_config(
        cls, pretrained_model_name_or_path: PathLike, subfolder: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Reads a JSON file, or ``config_name`` in a directory, a bundled model or a repository on a hub.

        Args:
            subfolder: where in it the file is, e.g. "transformer".
            **options: ``cache_dir``, ``revision``, ``local_files_only``, ``token``, ``force_download``: for a hub id.
                And keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError: no such file.
            ConfigError: the file is not a JSON object.
        """
        file = resolve_small_file(pretrained_model_name_or_path, cls.config_name, subfolder, **options)
        return read_json(file, purpose=f"the configuration of {cls.__name__}")

    def to_json_dict(self) -> dict[str, Any]:
        """``config`` and the class name as plain JSON values, as they are saved."""
        from . import __version__

        return {"_class_name": type(self).__name__, "_ppsd3_version": __version__, **_jsonable(dict(self.config))}

    def save_config(self, save_directory: PathLike) -> None:
        """Writes ``config`` to ``save_directory/config_name``, atomically; the directory is made if missing."""
        os.makedirs(save_directory, exist_ok=True)
        text = json.dumps(self.to_json_dict(), indent=2, sort_keys=True) + "\n"
        with atomic_write(os.path.join(save_directory, self.config_name)) as file:
            file.write(text.encode())


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    return value
