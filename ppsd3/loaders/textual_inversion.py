"""Textual inversion for the CLIP text encoders: tokens with learnt embeddings (Gal et al. 2022). Names are diffusers'.

A word with n vectors is n tokens in the tokenizer, ``<cat>``, ``<cat>_1``, ..., and n rows at the end of the encoder's
embedding table. Nothing else is stored, so pipelines that share these share the words, and saved pipelines have them.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import paddle

from ..serialization.readers import SafetensorsFile
from ..serialization.tensors import from_numpy
from ..serialization.weight_files import find_weights, to_paddle
from ..serialization.writers import write_tensors
from ..transformers import CLIPTokenizer
from ..transformers.tokenization import TOKEN_RULE, can_be_token
from ..utils import signatures
from ..utils.checking import Range, checks_arguments, fit, shown
from ..utils.errors import CheckpointFormatError, InputError, WeightMismatchError
from ..utils.files import atomic_write
from ..utils.foreign import require_own
from ..utils.keywords import HUB_KEYWORDS, LOADING, takes_keywords_of
from ..utils.recognition import explain, explain_tensors
from ..utils.threads import Changing, changes_networks, works_with_networks
from ..utils.types import Names, PathLike
from ..utils.weight_names import PICKLE_SUFFIXES
from .host import PipelineHost

TEXT_INVERSION_NAME_SAFE = "learned_embeds.safetensors"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of files for two towers
_ANONYMOUS = "emb_params"  # the web UI's key, which is no token
_TOKEN = "token"  # metadata of what is saved here
# Of the file; the hub's token is `hf_token`, because `token` is the word.
_FILE_OPTIONS = ("weight_name", "subfolder", "hf_token", *(name for name in HUB_KEYWORDS if name != "token"))


class _Source(NamedTuple):
    """What messages call it, its tensors by key, and the token that it suggests or None."""

    name: str
    tensors: dict[str, Any]
    token: str | None


class _Word(NamedTuple):
    """A token and its vectors, float32 [n, D], from the source of that name."""

    source: str
    token: str
    rows: np.ndarray


Vectors = Annotated[paddle.Tensor, Range(axes=(1, 2))]


class TextualInversionLoaderMixin(PipelineHost):
    """Textual inversion methods of pipelines with CLIP text encoders and their tokenizers."""

    @takes_keywords_of(LOADING, also=_FILE_OPTIONS)
    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str | None] | None = None,
        tokenizer: str | CLIPTokenizer | None = None,
        text_encoder: Any = None,
        **options: Any,
    ) -> None:
        """Adds a word with learnt embeddings, or several, to the CLIP text encoders; prompts can then use it.

        ::

            pipe.load_textual_inversion("cat.safetensors", token="<cat>")
            pipe("a photo of <cat>")

        T5, and a CLIP encoder for which the file has no embedding, read the word as ordinary text; ``prompt_3`` and
        ``prompt_2`` can describe it in other words.

        Args:
            pretrained_model_name_or_path: a safetensors file, a directory, a hub id, or a link to a file on the hub; or
                tensors (Paddle's, torch's or numpy's); or a list of these. Tensors are
                ``{"clip_l": [n, 768], "clip_g": [n, 1280]}`` for both encoders or one, as kohya's scripts and trainers
                for SDXL and SD3 write them; ``{token: [n, D]}``, diffusers' own; or ``{"emb_params": [n, D]}``, the
                web UI's. The last two go to the encoder of width D.
            token: the word. Default: the one in the file, or the file's name without ``.safetensors``. A list has one
                for each file or, with one file, one for each of its vectors.
            text_encoder: "text_encoder", "text_encoder_2" or the encoder itself: only this one gets the word. Default:
                all that the file has an embedding for.
            tokenizer: the one of ``text_encoder``, by name or itself, as diffusers requires it.
            **options: ``weight_name``, ``subfolder``, ``cache_dir``, ``revision``, ``local_files_only``,
                ``force_download``, ``hf_token``: of the file; and keywords of other libraries, see
                :mod:`ppsd3.utils.keywords`.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError: no such file, a pickle, or not an embedding.
            WeightMismatchError: the vectors have another width than the encoders.
            InputError: the word exists already or is missing, or an argument is impossible.
        """
        several = isinstance(pretrained_model_name_or_path, (list, tuple))
        given = list(pretrained_model_name_or_path) if several else [pretrained_model_name_or_path]
        towers = self._towers(text_encoder, tokenizer)
        chosen = text_encoder is not None or tokenizer is not None
        sources = [_read(item, dict(options)) for item in given]
        words = collections.defaultdict(list)  # tower -> its new words
        with Changing(self, "load_textual_inversion"):
            for source, wanted in zip(sources, _tokens_for(sources, token)):
                for tower, word in self._words(source, wanted, towers, chosen):
                    words[tower].append(word)
            for tower, some in words.items():
                self._check_words(tower, some)
            for tower, some in words.items():
                self._add_words(tower, some)

    @checks_arguments
    @changes_networks
    def unload_textual_inversion(
        self, tokens: Names | None = None, tokenizer: str | CLIPTokenizer | None = None, text_encoder: Any = None
    ) -> None:
        """Removes loaded words and their embeddings.

        Args:
            tokens: default all.
            tokenizer, text_encoder: as in :meth:`load_textual_inversion`; default both encoders.

        Raises:
            InputError: there is no such word.
        """
        towers = self._towers(text_encoder, tokenizer)
        words = {tower: self._words_of(tower) for tower in towers}
        wanted = {tokens} if isinstance(tokens, str) else None if tokens is None else set(tokens)
        known = {token for some in words.values() for token in some}
        if not known or (wanted is not None and not wanted <= known):
            missing = "any" if wanted is None or not known else repr(min(wanted - known))
            raise InputError(
                f"There is no textual inversion {missing} to unload; {' and '.join(towers)} know "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        for tower, some in words.items():
            gone = {name for token, names in some.items() if wanted is None or token in wanted for name in names}
            if gone:
                own = getattr(self, TOKENIZERS[tower])
                first, before = _first_added(own), list(own.added_tokens)
                keep = [index for index, name in enumerate(before) if name not in gone]
                rows = self._added_rows(tower)[keep]
                own.remove_tokens(gone)
                self._tell(tower, "set_added_embeddings", rows=rows, first=first, eos_token_id=own.eos_token_id)

    @checks_arguments
    @works_with_networks
    def save_textual_inversion(self, save_directory: PathLike, token: str, weight_name: str | None = None) -> None:
        """Writes a word of this pipeline into one file that :meth:`load_textual_inversion` reads.

        A word of both encoders has the keys ``clip_l`` and ``clip_g``, which kohya's scripts and the web UIs read too;
        a word of one encoder is written as diffusers does.

        Args:
            save_directory: made if missing.
            token: the word.
            weight_name: default ``learned_embeds.safetensors``.

        Raises:
            InputError: there is no such word, or ``save_directory`` is a file.
        """
        rows = {}
        for tower in self._towers(None, None):
            ids = list(getattr(self, TOKENIZERS[tower]).added_tokens)
            names = self._words_of(tower).get(token)
            if names:
                rows[tower] = self._added_rows(tower)[[ids.index(name) for name in names]]
        if not rows:
            raise InputError(f"There is no textual inversion {token!r} in this pipeline to be saved.")
        if os.path.isfile(save_directory):
            raise InputError(f"{save_directory} is a file; the word is saved into a directory. Choose another name.")
        if len(rows) == 1:
            tensors = {token: from_numpy(*rows.values())}
        else:
            tensors = {KEYS[tower]: from_numpy(some) for tower, some in rows.items()}
        os.makedirs(save_directory, exist_ok=True)
        with atomic_write(os.path.join(save_directory, weight_name or TEXT_INVERSION_NAME_SAFE)) as file:
            write_tensors(file, tensors, {"format": "pt", _TOKEN: token})

    def _towers(self, text_encoder: Any, tokenizer: Any) -> list[str]:
        """Names of the encoders that the two arguments choose; raises all errors about these arguments."""
        there = [name for name in TOKENIZERS if getattr(self, name, None) is not None]
        chosen = there
        for argument, value, names in (
            ("text_encoder", text_encoder, {name: name for name in there}),
            ("tokenizer", tokenizer, {TOKENIZERS[name]: name for name in there}),
        ):
            if value is None:
                continue
            found = [
                tower
                for name, tower in names.items()
                if value is getattr(self, name) or (isinstance(value, str) and value == name)
            ]
            if not found:
                what = repr(value) if isinstance(value, str) else f"a {type(value).__name__} that the pipeline has not"
                raise InputError(
                    f"{argument} is {what}; words can be learnt by {' and '.join(names) or 'CLIP towers'} of this "
                    "pipeline. Pass one of these names."
                )
            if not set(found) & set(chosen):
                raise InputError(
                    f"The tokenizer of the {chosen[0]} is the {TOKENIZERS[chosen[0]]}. Leave `tokenizer` out."
                )
            chosen = found
        if not chosen:
            raise InputError("The pipeline has no CLIP tower that could learn a word. Load it with its text encoders.")
        for name in chosen:
            self._check_tokenizer(name)
        return chosen

    def _check_tokenizer(self, tower: str) -> None:
        tokenizer, encoder = getattr(self, TOKENIZERS[tower]), getattr(self, tower)
        require_own("A textual inversion", encoder, tower)
        require_own("A textual inversion", tokenizer, TOKENIZERS[tower])
        if not isinstance(tokenizer, CLIPTokenizer):
            raise InputError(
                f"The {TOKENIZERS[tower]} is {'absent' if tokenizer is None else 'a ' + type(tokenizer).__name__}, and "
                "words are added to a ppsd3.CLIPTokenizer. Load the one of the checkpoint."
            )
        if _first_added(tokenizer) > encoder.config.vocab_size:
            raise InputError(
                f"The {TOKENIZERS[tower]} knows {_first_added(tokenizer)} tokens and the {tower} "
                f"{encoder.config.vocab_size}: they do not belong together. Load both from one checkpoint."
            )

    def _words_of(self, tower: str) -> dict[str, list[str]]:
        """The words that were added to the encoder's tokenizer -> their tokens."""
        tokenizer = getattr(self, TOKENIZERS[tower])
        groups = {token: tokenizer.vectors_of(token) for token in tokenizer.added_tokens}
        further = {name for names in groups.values() for name in names[1:]}
        return {token: names for token, names in groups.items() if token not in further}

    def _words(self, source: _Source, token: Any, towers: list[str], chosen: bool) -> list[tuple[str, _Word]]:
        """[(encoder, word)] of one source; ``chosen``: the user asked for ``towers``."""
        keys = [key for key in source.tensors if key in KEYS.values()]
        if keys:
            places = {tower: source.tensors[KEYS[tower]] for tower in TOKENIZERS if KEYS[tower] in keys}
            others = [tower for tower in places if tower not in towers]
            places = {tower: tensor for tower, tensor in places.items() if tower in towers}
            if not places or (others and not chosen):
                raise InputError(
                    f"{source.name} has {' and '.join(keys)}, embeddings for the {' and the '.join(others)}, which "
                    f"{'is not asked for' if chosen else 'the pipeline has not'}. "
                    + (f"Pass text_encoder={next(iter(places))!r} to load the rest." if places else "")
                )
        else:
            (tensor,) = source.tensors.values()
            _require_vectors(source, tensor)
            places = {self._tower_of_width(source, tensor, token, towers): tensor}
        found = []
        for tower, tensor in places.items():
            width = getattr(self, tower).config.hidden_size
            _require_vectors(source, tensor)
            for name, rows in _split(source, tensor, token):
                if rows.shape[1] != width:
                    raise WeightMismatchError(
                        f"{source.name}: the vectors of {name!r} are {rows.shape[1]} wide, and the {tower} takes "
                        f"{width}. They were learnt for {signatures.WORD_WIDTHS.get(rows.shape[1], 'another model')}."
                    )
                found.append((tower, _Word(source.name, name, rows)))
        return found

    def _tower_of_width(self, source: _Source, tensor: Any, token: Any, towers: list[str]) -> str:
        if len(towers) == 1:
            return towers[0]
        width = tensor.shape[-1]
        widths = {tower: getattr(self, tower).config.hidden_size for tower in towers}
        for tower in towers:
            if widths[tower] == width:
                return tower
        name = token if isinstance(token, str) else source.token
        wanted = ", ".join(f"{tower} {width}" for tower, width in widths.items())
        raise WeightMismatchError(
            f"{source.name}: the vectors of {name!r} are {width} wide, and no tower is: {wanted}. They were learnt for "
            f"{signatures.WORD_WIDTHS.get(width, 'another model')}."
        )

    def _check_words(self, tower: str, words: Sequence[_Word]) -> None:
        """Raises InputError if a word is impossible, or exists in the encoder's tokenizer or twice in ``words``."""
        tokenizer = getattr(self, TOKENIZERS[tower])
        # For each word also the name of one vector more: a token of that name would become part of the word.
        seen = {f"{token}_{len(names)}".lower() for token, names in self._words_of(tower).items()}
        for source, token, rows in words:
            if not can_be_token(token):
                raise InputError(f"{source}: token is {shown(token)}; {TOKEN_RULE}.")
            names = _names(token, len(rows) + 1)
            taken = next((name for name in names if name.lower() in seen or tokenizer.has_token(name)), None)
            if taken is not None:
                raise InputError(
                    f"{source}: the {TOKENIZERS[tower]} has the token {taken!r} already, so {token!r} cannot become a "
                    "word. Pass another one: token='<...>', or unload_textual_inversion() first."
                )
            seen.update(map(str.lower, names))

    def _add_words(self, tower: str, words: Sequence[_Word]) -> None:
        tokenizer = getattr(self, TOKENIZERS[tower])
        first = _first_added(tokenizer)
        rows = np.concatenate([self._added_rows(tower), *(word.rows for word in words)])
        tokenizer.add_tokens([name for word in words for name in _names(word.token, len(word.rows))])
        self._tell(tower, "set_added_embeddings", rows=rows, first=first, eos_token_id=tokenizer.eos_token_id)

    def _added_rows(self, tower: str) -> np.ndarray:
        """Embeddings, float32 [n, D], of the tokens that were added to the encoder's tokenizer."""
        tokenizer = getattr(self, TOKENIZERS[tower])
        if not tokenizer.added_tokens:
            return np.empty([0, getattr(self, tower).config.hidden_size], np.float32)
        with self.using(tower) as network, paddle.no_grad():
            first, last = _first_added(tokenizer), len(tokenizer)
            return network.get_input_embeddings().weight[first:last].astype("float32").numpy()


def _read(given: Any, options: dict[str, Any]) -> _Source:
    """Reads a path, a tensor or a dict of tensors."""
    if isinstance(given, dict):
        return _from_dict(given)
    if not isinstance(given, (str, os.PathLike)):
        given = fit("pretrained_model_name_or_path", given, Vectors)
        return _Source("The tensor", {_ANONYMOUS: to_paddle("The tensor", given)}, None)
    _refuse_pickle(given)
    weight_name, subfolder = options.pop("weight_name", None), options.pop("subfolder", None)
    hub = {"token" if name == "hf_token" else name: value for name, value in options.items()}
    _refuse_pickle(weight_name or "")
    path = find_weights(given, TEXT_INVERSION_NAME_SAFE, weight_name, subfolder, hub)
    file = SafetensorsFile(path)
    tensors = (
        {key: file.read(key) for key in file.keys()} if len(file.keys()) <= len(KEYS) else dict.fromkeys(file.keys())
    )
    stem = None if os.path.basename(path) == TEXT_INVERSION_NAME_SAFE else os.path.splitext(os.path.basename(path))[0]
    return _checked(_Source(path, tensors, file.metadata.get(_TOKEN) or stem))


def _from_dict(given):
    token = None
    if "string_to_param" in given:  # what is in the web UI's .pt files
        token, given = given.get("name"), {_ANONYMOUS: given["string_to_param"].get("*")}
    tensors = {key: to_paddle(key, value) for key, value in given.items()}
    return _checked(_Source("The dict", tensors, token))


def _checked(source: _Source) -> _Source:
    """``source`` with the token that its key gives. Raises CheckpointFormatError if it is not an embedding."""
    keys = list(source.tensors)
    if keys and set(keys) <= set(KEYS.values()):
        return source
    infos = {key: ("", () if tensor is None else tensor.shape) for key, tensor in source.tensors.items()}
    known = explain_tensors(source.name, infos, wanted="word")
    if len(keys) == 1 and known is None:
        return source if keys[0] == _ANONYMOUS else source._replace(token=keys[0])
    some = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    raise CheckpointFormatError(
        known
        or f"{source.name} is no textual inversion: it has {len(keys)} tensors ({some or 'none'}), and one should "
        "have a single one, or clip_l and clip_g. Pass the embedding alone."
    )


def _require_vectors(source: _Source, tensor: paddle.Tensor) -> None:
    if tensor.ndim not in (1, 2) or not 0 < tensor.shape[0]:
        raise CheckpointFormatError(
            f"{source.name}: the tensor has the shape {list(tensor.shape)}; vectors are [n, width] or [width]."
        )


def _refuse_pickle(path):
    is_other = os.path.isfile(path) and "is a pickle" not in (explain(path) or "")  # whatever it is called
    if str(path).lower().endswith(PICKLE_SUFFIXES) and not is_other:
        raise CheckpointFormatError(
            f"{path} is a pickle. Reading one can run code, so ppsd3 does not open it. Convert it where you trust it, "
            "with torch and safetensors: content = torch.load(path, weights_only=True); a file of the web UI: "
            "save_file({'emb_params': content['string_to_param']['*']}, 'cat.safetensors'); one of diffusers: "
            "save_file(content, 'cat.safetensors')."
        )


def _tokens_for(sources: Sequence[_Source], token: str | Sequence[str | None] | None) -> list[Any]:
    """For each source, what the argument says: one token, a list with one for each vector, or None."""
    if token is None or isinstance(token, str):
        if isinstance(token, str) and len(sources) > 1:
            raise InputError(f"token is {token!r} for {len(sources)} embeddings. Pass a list with one for each.")
        return [token] * len(sources)
    if len(sources) == 1:
        return [token[0] if len(token) == 1 else list(token)]
    if len(token) != len(sources):
        raise InputError(f"There are {len(sources)} embeddings and {len(token)} tokens. Pass one for each.")
    return list(token)


def _split(source: _Source, tensor: paddle.Tensor, token: Any) -> list[tuple[str, np.ndarray]]:
    """[(token, float32 [n, D])]: one word of all vectors or, with a list of tokens, one word for each vector."""
    rows = tensor.detach().astype("float32").numpy().reshape(-1, tensor.shape[-1])
    if not np.isfinite(rows).all():
        raise CheckpointFormatError(
            f"{source.name} has vectors that are no finite numbers. Download or train it again."
        )
    if isinstance(token, list):
        if len(token) != len(rows):
            raise InputError(f"{source.name} has {len(rows)} vectors, and there are {len(token)} tokens for them.")
        return [(name, rows[index : index + 1]) for index, name in enumerate(token)]
    token = token or source.token
    if token is None:
        raise InputError(f"{source.name} does not say which word it is. Pass token='<...>'.")
    return [(token, rows)]


def _names(token: str, count: int) -> list[str]:
    """The tokens of a word of ``count`` vectors."""
    return [token, *(f"{token}_{index}" for index in range(1, count))]


def _first_added(tokenizer: CLIPTokenizer) -> int:
    """The id of the first added token, also if none is added yet."""
    return len(tokenizer) - len(tokenizer.added_tokens)
