"""Text to ids: what the CLIP and T5 tokenizers share.

The work is done by the ``tokenizers`` library. transformers 5 does not run a published ``tokenizer.json`` as it is: it
takes the vocabulary out of it and assembles its class's own pipeline around it. The subclasses here assemble the same
ones, so that ids are equal whichever files a directory holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import numpy as np
import paddle

from ..outputs import BaseOutput
from ..utils import elsewhere
from ..utils.checking import Range, checks_arguments, fit, shown
from ..utils.elsewhere import NoAttributeError, check_argument_names
from ..utils.errors import CheckpointFormatError, CheckpointNotFoundError, InputError, PPSD3Error
from ..utils.files import atomic_write, read_whole, replacing
from ..utils.hub import resolve_checkpoint
from ..utils.json_files import MOST_BYTES_OF_VOCABULARY, parse_json, read_json
from ..utils.keywords import HUB_KEYWORDS, LOADING, SAVING, takes_keywords_of
from ..utils.recognition import explain, explained
from ..utils.types import Names, PathLike

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from typing_extensions import Self

# Arguments of transformers that say what the result holds; it always holds the same here.
_NEUTRAL_OPTIONS = ("return_length", "return_attention_mask", "return_overflowing_tokens")
Length = Annotated[int, Range(1, 2**20)]
Rows = Union[Sequence[Sequence[int]], np.ndarray, paddle.Tensor]
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Published vocabularies have up to 2^18 tokens, and some hundred added ones.
MOST_TOKENS = 1 << 22
_MOST_ADDED_TOKENS, _LONGEST_ADDED_TOKEN = 1 << 16, 1000
_LONGEST_REASON = 300  # of the library's, which can list a vocabulary
_LONGEST_ROW = 1 << 20  # a longer model_max_length means that none is known: transformers writes 10^30


@dataclasses.dataclass
class TokenizerOutput(BaseOutput):
    """Token ids of ``B`` texts.

    Attributes:
        input_ids: [B, L].
        attention_mask: 1 = token, 0 = padding.
        truncated: per text, the end of it that did not fit.
    """

    input_ids: Any
    attention_mask: Any
    truncated: list


class PretrainedTokenizer:
    """Base of the tokenizers; a subclass builds the pipeline and reads its own vocabulary files.

    Attributes:
        model_max_length: the length that ``padding="max_length"`` and truncation mean.
        bos_token, eos_token, unk_token, pad_token (str or None), and ``..._id`` (int or None).
        vocab_size: number of ids, added tokens included.
        added_tokens: token -> id of those beyond the vocabulary that are not special, in order of their ids.

    Among the added ones, ``<cat>``, ``<cat>_1``, ``<cat>_2`` are the vectors of one token, as diffusers names them:
    where a text has ``<cat>``, all of them follow one another.
    """

    # Set by subclasses
    default_tokens: dict[str, str] = {}
    default_max_length: int
    vocabulary_files: tuple[str, ...] = ()  # what may hold the vocabulary, for the error message
    starts_with_bos = False
    needed_tokens: tuple[str, ...] = ("eos_token",)

    def __init__(
        self,
        backend: Tokenizer,
        tokens: Mapping[str, Any] | None = None,
        added_tokens: Sequence[Mapping[str, Any]] = (),
        model_max_length: int | None = None,
    ) -> None:
        """
        Args:
            backend: the pipeline without special tokens.
            tokens: special tokens by name ("pad_token", ...); the rest are the class's own.
            added_tokens: further tokens that are looked for in the text before it is split, as
                ``added_tokens`` of a tokenizer.json has them (``content``, ``lstrip``, ``special``, ...).
            model_max_length: the default is the class's own.

        Raises:
            CheckpointFormatError: a token without text or an impossible one, or vocabulary that cannot be used.
        """
        added_tokens = fit("added_tokens", added_tokens, Sequence)
        model_max_length = fit("model_max_length", model_max_length, Optional[Annotated[int, Range(1)]])
        named = {**self.default_tokens, **(fit("tokens", tokens, Optional[Mapping]) or {})}
        named = {name: checked_token(name, named[name]) for name in _TOKEN_NAMES if name in named}
        for name in self.needed_tokens:
            if named.get(name) is None:
                raise CheckpointFormatError(f"{name} is null; a {type(self).__name__} needs one.")
        self._tokens = {name: content_of(named.get(name)) for name in _TOKEN_NAMES}
        self.model_max_length = model_max_length or self.default_max_length
        self._backend = backend
        self._add_tokens([*added_tokens, *named.values()])
        with library_errors("the start and end tokens cannot be used"):
            backend.post_processor = self._post_processor()

    # -- special tokens --------------------------------------------------------------------------------------------

    def _add_tokens(self, candidates):
        """Registers tokens as indivisible, each once; the first mention settles how it treats the spaces around it."""
        from tokenizers import AddedToken

        seen, added = set(), []
        for index, token in enumerate(candidates):
            fields = checked_token(f"added_tokens[{index}]", token)
            if fields is None or content_of(fields) in seen:
                continue
            seen.add(content_of(fields))
            fields = {"special": True, **(fields if isinstance(fields, dict) else {"content": fields})}
            fields["special"] = fields["special"] or fields["content"] in self._tokens.values()
            added.append(AddedToken(**fields))
        if len(added) > _MOST_ADDED_TOKENS:
            raise CheckpointFormatError(f"{len(added):,} tokens are added; there can be {_MOST_ADDED_TOKENS:,}.")
        with library_errors("the added tokens cannot be used"):
            self._backend.add_tokens(added)
        self._note_added()

    @property
    def added_tokens(self) -> dict[str, int]:
        first = self._backend.get_vocab_size(with_added_tokens=False)
        added = sorted(self._backend.get_added_tokens_decoder().items())
        return {token.content: id for id, token in added if id >= first and not token.special}

    def add_tokens(self, tokens: Names) -> int:
        """Adds tokens that are found in a text before it is split into words, in any case of their letters.

        Args:
            tokens: one or several new ones.

        Returns:
            How many.

        Raises:
            InputError: one is empty, begins or ends with a space, or is there already.
        """
        from tokenizers import AddedToken

        tokens = list(_listed(tokens))
        for index, token in enumerate(tokens):
            if not can_be_token(token):
                raise InputError(f"{shown(token)} cannot be a token; {TOKEN_RULE}.")
            if self.has_token(token) or token.lower() in map(str.lower, tokens[:index]):
                raise InputError(
                    f"The tokenizer knows the token {token!r} already. Choose another name, e.g. '<{token}>'."
                )
        self._backend.add_tokens([AddedToken(token, normalized=True, special=False) for token in tokens])
        self._note_added()
        return len(tokens)

    def remove_tokens(self, tokens: Iterable[str]) -> None:
        """Takes ``tokens`` (of ``added_tokens``) away; the ids of the other added ones move up."""
        from tokenizers import AddedToken, Tokenizer

        decoder, added = self._backend.get_added_tokens_decoder(), self.added_tokens
        kept = [AddedToken(**_fields(decoder[id])) for token, id in added.items() if token not in tokens]
        content = parse_json(self._backend.to_str(), "the tokenizer")
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in added]
        self._backend = Tokenizer.from_str(json.dumps(content))
        self._backend.add_tokens(kept)
        self._note_added()

    def has_token(self, token: str) -> bool:
        """Whether ``token`` is in the vocabulary or was added; the latter in any case of its letters."""
        return self._id(token) is not None or token.lower() in map(str.lower, self.added_tokens)

    def vectors_of(self, token: str) -> list[str]:
        """``[token, token_1, token_2, ...]`` as far as these were added."""
        return _vectors_of(token, self.added_tokens)

    def _note_added(self):
        """Which ids stand for several: the first vector's id -> all of them."""
        added = self.added_tokens
        groups = {id: [added[name] for name in _vectors_of(token, added)] for token, id in added.items()}
        self._vectors = {id: group for id, group in groups.items() if len(group) > 1}

    bos_token = property(lambda self: self._tokens["bos_token"])
    eos_token = property(lambda self: self._tokens["eos_token"])
    unk_token = property(lambda self: self._tokens["unk_token"])
    pad_token = property(lambda self: self._tokens["pad_token"])
    bos_token_id = property(lambda self: self._id(self.bos_token))
    eos_token_id = property(lambda self: self._id(self.eos_token))
    unk_token_id = property(lambda self: self._id(self.unk_token))
    pad_token_id = property(lambda self: self._id(self.pad_token))

    def _id(self, token):
        return None if token is None else self._backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def __len__(self) -> int:
        return self.vocab_size

    # -- text to ids and back --------------------------------------------------------------------------------------

    @checks_arguments
    def __call__(
        self,
        text: Names,
        padding: str | bool = "max_length",
        max_length: Length | None = None,
        truncation: bool = True,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **options: Any,
    ) -> TokenizerOutput:
        """Tokenizes one or several texts.

        Args:
            text: one str is a batch of one.
            padding: fill every row on the right with ``pad_token`` up to
                ``max_length``, up to the longest row ("longest" or True), or not at all ("do_not_pad" or False).
            max_length: longest row, start and end tokens included. Default ``model_max_length``.
            truncation: cut longer texts, keeping the end token.
            add_special_tokens: begin and end each row with the start and end tokens that the encoder was trained with.
            return_tensors: "pd" (or "pt") gives Paddle tensors in place of numpy arrays, "np" or None the latter.
            **options: of transformers, where they change nothing: ``return_length``, ``return_attention_mask``,
                ``return_overflowing_tokens``.

        Returns:
            TokenizerOutput

        Raises:
            InputError: not text, an unknown ``padding``, a ``max_length`` without room for a token, or a text that is
                too long to be padded and may not be truncated.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if padding not in ("max_length", "longest", True, "do_not_pad", False):
            raise InputError(f"padding is {padding!r}; it should be 'max_length', 'longest' or False.")
        limit = self.model_max_length if max_length is None else max_length
        start = [self.bos_token_id] * (self.starts_with_bos and add_special_tokens)
        end = [self.eos_token_id] * add_special_tokens
        room = limit - len(start) - len(end)
        if room < 1:
            raise InputError(f"max_length is {limit}; start and end tokens leave no room for text.")

        rows, truncated = [], []
        with library_errors("a text cannot be tokenized", texts):
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        for item, encoding in zip(texts, encodings):
            tokens, rest = self._spans(encoding), None
            if truncation and len(tokens) > room:
                # Positions are in the text as it was given, so the user reads their own words.
                tokens, rest = tokens[:room], item[tokens[room][1] :]
            rows.append(start + [token for token, _, _ in tokens] + end)
            truncated.append(rest)
        made = self._padded(rows, truncated, padding, limit)
        return _in_form(made, return_tensors, options) if return_tensors or options else made

    def _padded(self, rows, truncated, padding, limit):
        if padding in ("do_not_pad", False):
            return TokenizerOutput(rows, [[1] * len(row) for row in rows], truncated)
        longest = max(map(len, rows), default=0)
        length = limit if padding == "max_length" else longest
        if longest > length:
            raise InputError(f"a text has {longest} tokens, more than max_length ({length}); pass truncation=True.")
        if self.pad_token_id is None:
            raise InputError("this tokenizer has no pad_token; pass padding=False, or set pad_token in its files.")
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        return TokenizerOutput(input_ids, attention_mask, truncated)

    @checks_arguments
    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """[(id, start, end)] of all of ``text``'s tokens, without start and end token; positions are in ``text``."""
        with library_errors("a text cannot be tokenized", [text]):
            encoding = self._backend.encode(text, add_special_tokens=False)
        return self._spans(encoding)

    def _spans(self, encoding):
        pairs = zip(encoding.ids, encoding.offsets)
        return [(id, *offsets) for token, offsets in pairs for id in self._vectors.get(token, (token,))]

    @checks_arguments
    def tokenize(self, text: str) -> list[str | None]:
        """The vocabulary entries of ``text``'s tokens, without start and end token."""
        return self.convert_ids_to_tokens([id for id, _, _ in self.spans(text)])

    @checks_arguments
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of one text, neither padded nor cut."""
        return self(text, padding=False, truncation=False, add_special_tokens=add_special_tokens).input_ids[0]

    @checks_arguments
    def convert_tokens_to_ids(self, tokens: Names) -> int | list[int | None] | None:
        """The id of a vocabulary entry, or the ids of several; the unknown token's for one that does not exist."""
        ids = [self.unk_token_id if self._id(token) is None else self._id(token) for token in _listed(tokens)]
        return ids[0] if isinstance(tokens, str) else ids

    @checks_arguments
    def batch_decode(self, sequences: Rows, skip_special_tokens: bool = True) -> list[str]:
        """The text of each row of ids, see :meth:`decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]  # type: ignore[arg-type] (of arrays too)

    def __getattr__(self, name: str) -> Any:
        raise NoAttributeError(type(self), name, elsewhere.TOKENIZER)

    @checks_arguments
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of one row of ids (list or array [L]); start, end and padding are left out by default."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @checks_arguments
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The vocabulary entry (str) of each id; None for an id that does not exist."""
        return [self._backend.id_to_token(int(i)) for i in ids]

    # -- files -----------------------------------------------------------------------------------------------------

    @classmethod
    @takes_keywords_of(LOADING, also=(*HUB_KEYWORDS, *_TOKEN_NAMES))
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        subfolder: str | None = None,
        model_max_length: int | None = None,
        **options: Any,
    ) -> Self:
        """Reads a tokenizer as published or as saved by transformers.

        ``tokenizer_config.json`` and ``special_tokens_map.json`` are optional; the class docstring says which files
        can hold the vocabulary.

        Args:
            pretrained_model_name_or_path: a directory, a bundled name or a hub id.
            subfolder: where in it the files are; ``"tokenizer"`` in a pipeline's directory.
            model_max_length: in place of the one in the files.
            **options: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token``: in place of those in the files.
                ``cache_dir``, ``revision``, ``local_files_only``, ``token``, ``force_download``: for a hub id. And
                keywords of other libraries, see :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError: no such directory, or no vocabulary in it.
            CheckpointFormatError, ConfigError: a file is not what its name says.
            InputError: a keyword that is unknown or not done here.
        """
        hub = {name: options[name] for name in HUB_KEYWORDS if name in options}
        directory = resolve_checkpoint(pretrained_model_name_or_path, subfolder=subfolder or "", **hub)
        return read_whole(directory, lambda path: cls._read(path, model_max_length, options), subfolder)

    @classmethod
    def _read(cls, path, model_max_length, options):
        """See :meth:`from_pretrained`."""
        needed = f"a {cls.__name__} is read from {' or '.join(cls.vocabulary_files)}"
        if not os.path.isdir(path):
            absent = f"{path} is not a directory; {needed} in it. Check the path and `subfolder`."
            raise CheckpointNotFoundError(explain(path) or absent)
        content = _optional_json(path, "tokenizer.json", "a tokenizer")
        settings = _read_settings(path, content, cls.default_tokens)
        for name in _TOKEN_NAMES:
            if options.get(name) is not None:
                settings["tokens"][name] = fit(name, options[name], str)
        model_max_length = fit("model_max_length", model_max_length, Optional[Annotated[int, Range(1)]])
        settings["model_max_length"] = model_max_length or settings["model_max_length"]
        ids = settings.pop("ids")
        try:
            tokenizer = cls._from_files(path, content, settings)
        except CheckpointFormatError as error:  # what is wrong is in one of several files
            if path in str(error):
                raise
            raise CheckpointFormatError(f"{path}: {error} Get the tokenizer again.") from error
        if tokenizer is None:
            found = ", ".join(sorted(os.listdir(path))) or "nothing"
            absent = CheckpointNotFoundError(f"{path} holds no vocabulary: {needed}; found: {found}.")
            raise explained(absent, path, wanted="tokenizer")
        for token, id in ids.items():
            if tokenizer._id(token) != id:
                raise CheckpointFormatError(
                    f"{path} gives the token {shown(token)} the id {id}, but its vocabulary makes it "
                    f"{tokenizer._id(token)}: the files are of different tokenizers. Get them together."
                )
        return tokenizer

    @classmethod
    def _from_files(cls, path, content, settings):
        """The tokenizer in ``path``, or None if there is no vocabulary.

        ``content`` is the parsed tokenizer.json, ``{}`` if there is none; ``settings`` as :func:`_read_settings` says.
        """
        raise NotImplementedError

    @takes_keywords_of(SAVING, also=())
    def save_pretrained(self, save_directory: PathLike, **others: Any) -> None:
        """Writes files that ppsd3, transformers and diffusers load, with the same ids.

        They are tokenizer.json, tokenizer_config.json, special_tokens_map.json and the subclass's classic vocabulary
        files. ``others`` are keywords of other libraries, see :mod:`ppsd3.utils.keywords`.
        """
        added = self._backend.get_added_tokens_decoder()
        config = {
            **self._tokens,
            "added_tokens_decoder": {str(id): _fields(token) for id, token in sorted(added.items())},
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": type(self).__name__,
            **self._extra_settings(),
        }
        files = {
            "tokenizer.json": self._backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": _json_bytes(config),
            "special_tokens_map.json": _json_bytes({k: v for k, v in self._tokens.items() if v is not None}),
            **self._vocabulary_contents(),
        }
        with replacing(save_directory) as new:
            for name, content in files.items():
                with atomic_write(os.path.join(new, name)) as file:
                    file.write(content)

    def save_vocabulary(self, directory: PathLike) -> None:
        """Writes the classic vocabulary files that ``directory`` lacks; PaddleNLP does not read tokenizer.json."""
        for name, content in self._vocabulary_contents().items():
            path = os.path.join(directory, name)
            if not os.path.isfile(path):
                with atomic_write(path) as file:
                    file.write(content)

    def _extra_settings(self):
        """Further keys of tokenizer_config.json."""
        return {}

    def _vocabulary_contents(self):
        """File name -> bytes of the classic vocabulary files."""
        return {}

    def _post_processor(self):
        """What other readers of tokenizer.json need in order to add the start and end tokens."""
        raise NotImplementedError


TOKEN_RULE = f"it has to be text without spaces around it, of at most {_LONGEST_ADDED_TOKEN} characters"


def can_be_token(token: Any) -> bool:
    """Whether ``token`` can be added to a tokenizer, see ``TOKEN_RULE``; half a surrogate pair is no text."""
    if not isinstance(token, str) or not 0 < len(token) <= _LONGEST_ADDED_TOKEN or token != token.strip():
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in token)


_ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def _listed(names):
    return [names] if isinstance(names, str) else names


def _in_form(made, return_tensors, options):
    """``made`` as tensors, after a look at transformers' further arguments."""
    check_argument_names("A tokenizer", options, list(_NEUTRAL_OPTIONS), elsewhere.TOKENIZER)
    for name, value in options.items():
        if name == "return_overflowing_tokens" and value:
            raise InputError(
                "return_overflowing_tokens=True is not done. The result's `truncated` has what was cut off."
            )
    if return_tensors in (None, "np"):
        return made
    if return_tensors not in ("pd", "pt"):
        raise InputError(f"return_tensors is {return_tensors!r}; it can be 'np', 'pd' or 'pt', both Paddle's.")
    if isinstance(made.input_ids, list):
        raise InputError("Rows of several lengths make no tensor. Pass padding='max_length' or padding='longest'.")
    ids, mask = (paddle.to_tensor(rows) for rows in (made.input_ids, made.attention_mask))
    return TokenizerOutput(ids, mask, made.truncated)


def _vectors_of(token, added):
    names = [token]
    while f"{token}_{len(names)}" in added:
        names.append(f"{token}_{len(names)}")
    return names


def content_of(token: Any) -> Any:
    """The text of a token, which is that or a dict with ``content``."""
    return token["content"] if isinstance(token, dict) else token


def checked_token(name: str, value: Any) -> Any:
    """A token out of a file: None, text, or a dict of fields of ``AddedToken``, ``content`` at least."""
    fields = value if isinstance(value, dict) else {"content": value}
    fields = {
        key: fit(f"{name}.{key}", fields[key], str if key == "content" else bool, CheckpointFormatError)
        for key in _ADDED_TOKEN_FIELDS
        if fields.get(key) is not None
    }
    if value is None:
        return None
    if not 0 < len(fields.get("content", "")) <= _LONGEST_ADDED_TOKEN:
        raise CheckpointFormatError(
            f"`{name}` is {shown(value)}; a token has text of 1 to {_LONGEST_ADDED_TOKEN} characters."
        )
    return fields if isinstance(value, dict) else value


@contextlib.contextmanager
def library_errors(what: str, texts: Sequence[str] = ()) -> Iterator[None]:
    """Turns what the ``tokenizers`` library raises, bare Exceptions and panics of Rust, into errors of ours.

    Args:
        what: what is said before the library's reason.
        texts: of a call; they are to blame if one is not Unicode.
    """
    try:
        yield
    except PPSD3Error:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interruption
        raise _explained(what, texts, error) from error


def _explained(what, texts, error):
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            return InputError(f"The text {shown(text)} has half a surrogate pair, which is no character.")
    return CheckpointFormatError(f"{what}: {str(error)[:_LONGEST_REASON]}. Check the tokenizer's files.")


def _fields(token):
    """An ``AddedToken`` as a dict."""
    return {field: getattr(token, field) for field in _ADDED_TOKEN_FIELDS}


def _json_bytes(value):
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _optional_json(path, name, purpose):
    file = os.path.join(path, name)
    return read_json(file, purpose, MOST_BYTES_OF_VOCABULARY) if os.path.lexists(file) else {}


def check_model_type(content: Mapping[str, Any], model_type: str, path: str) -> None:
    """Raises CheckpointFormatError unless the parsed tokenizer.json of ``path`` is a "BPE" or "Unigram" one."""
    model, file = content.get("model"), os.path.join(path, "tokenizer.json")
    if not isinstance(model, dict):
        raise CheckpointFormatError(f"{file}: `model` is {shown(model)}; it has to be a dict. Get the tokenizer again.")
    if "vocab" not in model or model.get("type", model_type) != model_type:
        raise CheckpointFormatError(
            f"{file} holds a {shown(model.get('type'))} model, but a {model_type} vocabulary "
            "is needed; is it the tokenizer of another text encoder?"
        )


def _read_settings(path, content, default_tokens):
    """Named tokens, added tokens and length limit of a tokenizer directory; ``content`` is its tokenizer.json.

    Precedence is that of transformers 5: where ``tokenizer_config.json`` lists ``added_tokens_decoder`` it alone
    counts; otherwise ``special_tokens_map.json`` overrides its named tokens and the other files list added ones.

    Returns:
        dict: ``tokens`` (name -> str or dict), ``added_tokens`` (dicts in order of id), ``ids`` (token -> id of these),
        ``model_max_length`` (int or None), ``config`` (all of tokenizer_config.json).
    """
    config = _optional_json(path, "tokenizer_config.json", "the settings of a tokenizer")
    place = os.path.join(path, "tokenizer_config.json") + ": "
    tokens = {name: checked_token(place + name, config[name]) for name in _TOKEN_NAMES if name in config}
    if "added_tokens_decoder" in config:
        listed = fit(place + "added_tokens_decoder", config["added_tokens_decoder"], dict, CheckpointFormatError)
        added: list[tuple[Any, Any]] = [
            (id, checked_token(f"{place}added_tokens_decoder[{shown(id)}]", token)) for id, token in listed.items()
        ]
    else:
        special = _optional_json(path, "special_tokens_map.json", "the special tokens of a tokenizer")
        there = os.path.join(path, "special_tokens_map.json") + ": "
        tokens.update({name: checked_token(there + name, special[name]) for name in _TOKEN_NAMES if name in special})
        named = {content_of(token) for token in {**default_tokens, **tokens}.values()}
        added = [
            (id, {"content": token, "normalized": token not in named, "special": token in named})
            for token, id in _optional_json(path, "added_tokens.json", "the added tokens of a tokenizer").items()
        ]
        there = os.path.join(path, "tokenizer.json") + ": added_tokens"
        for index, token in enumerate(fit(there, content.get("added_tokens") or [], list, CheckpointFormatError)):
            fields = fit(f"{there}[{index}]", token, dict, CheckpointFormatError)
            added.append((fields.get("id"), checked_token(f"{there}[{index}]", fields)))
    in_order = {_token_id(path, id): token for id, token in added}
    limit = fit(place + "model_max_length", config.get("model_max_length"), _MaxLength, CheckpointFormatError)
    return {
        "tokens": tokens,
        "added_tokens": [in_order[id] for id in sorted(in_order)],
        "ids": {content_of(token): id for id, token in in_order.items()},
        "model_max_length": int(limit) if limit and limit <= _LONGEST_ROW else None,
        "config": config,
    }


_MaxLength = Optional[Annotated[float, Range(above=0, most=math.inf)]]


def _token_id(path, id):
    """The id of an added token in the files of ``path``, a number or its digits."""
    digits = str(id) if isinstance(id, str) or type(id) is int else ""
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) < MOST_TOKENS):
        raise CheckpointFormatError(
            f"{path} gives an added token the id {shown(id)}; ids are whole numbers below {MOST_TOKENS:,}. Get the "
            "tokenizer again."
        )
    return int(digits)
