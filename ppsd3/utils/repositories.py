"""Repositories on the public hubs, each through its hub's own client, which keeps the cache.

A client lists a repository's files, downloads some of them, and finds what the cache has. What is downloaded, and when
the cache stands in, is decided in :mod:`ppsd3.utils.hub`. The clients are imported when they are needed.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import CheckpointNotFoundError, InputError
from .types import PathLike
from .user_directories import name_hub_caches


class HubUnreachable(CheckpointNotFoundError):
    """The hub does not answer, and the cache can stand in for it. ``reason`` is the first part of the message."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(
            f"{reason}. Try again (a download goes on where it stopped), {remedy}, or copy the checkpoint here and "
            "pass its directory."
        )
        self.reason: str = reason


class Repository(ABC):
    """One repository on a hub, and its copy in the client's cache.

    Args:
        repo_id: "org/name".
        cache_dir: default the client's.
        revision: branch, tag or commit. Default: the hub's own.
        token: default the one that the client has stored.
        force_download: whether files in the cache are downloaded again.

    Attributes:
        remedy: what else to do if the hub does not answer.
    """

    remedy: str

    def __init__(
        self,
        repo_id: str,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        token: str | None = None,
        force_download: bool = False,
    ) -> None:
        self.repo_id, self.revision, self.token, self.force_download = repo_id, revision, token, force_download
        self.cache_dir: str | None = None if cache_dir is None else os.fspath(cache_dir)
        name_hub_caches()

    @property
    @abstractmethod
    def page(self) -> str:
        """Its address."""

    @property
    @abstractmethod
    def cache(self) -> str:
        """The directory of the cache."""

    @abstractmethod
    def list_files(self) -> list[str]:
        """Names of all of its files.

        Raises:
            HubUnreachable: the hub does not answer.
            CheckpointNotFoundError: there is no such repository or revision, or it may not be read.
        """

    @abstractmethod
    def download(self, files: Sequence[str]) -> str:
        """Downloads ``files`` unless the cache has them; the local directory. Raises what :meth:`list_files` does."""

    @abstractmethod
    def cached(self, file: str) -> str | None:
        """The local path of a file in the cache, or None. The hub is not asked."""

    @staticmethod
    def is_offline() -> bool:
        """Whether the environment says that no hub is asked: ``HF_HUB_OFFLINE=1``, of ModelScope too."""
        said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        return said.upper() in ("1", "ON", "YES", "TRUE")

    def error(self, what: str) -> CheckpointNotFoundError:
        """The error that says ``what`` of this repository."""
        return CheckpointNotFoundError(
            f"The hub repository {self.repo_id} {what}. (There is no local directory of that name either.)"
        )


class HuggingFaceRepository(Repository):
    """On the Hugging Face hub. ``huggingface_hub`` itself obeys ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_TOKEN``."""

    remedy = "set HF_ENDPOINT to a mirror"

    @property
    def page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.repo_id}"

    @property
    def cache(self) -> str:
        from huggingface_hub import constants

        return self.cache_dir or constants.HF_HUB_CACHE

    def list_files(self) -> list[str]:
        from huggingface_hub import HfApi

        with self._explained_errors():
            info = HfApi(token=self.token).model_info(self.repo_id, revision=self.revision)
        return [sibling.rfilename for sibling in info.siblings or ()]

    def download(self, files: Sequence[str]) -> str:
        from huggingface_hub import hf_hub_download, snapshot_download

        options: dict[str, Any] = {"cache_dir": self.cache_dir, "revision": self.revision, "token": self.token}
        options["force_download"] = self.force_download
        with self._explained_errors():
            if len(files) == 1:  # one question instead of two
                return hf_hub_download(self.repo_id, files[0], **options)[: -len(files[0]) - 1]
            return snapshot_download(self.repo_id, allow_patterns=list(files), **options)

    def cached(self, file: str) -> str | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repo_id, file, cache_dir=self.cache_dir, revision=self.revision)
        return path if isinstance(path, str) else None

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Turns what huggingface_hub raises into a CheckpointNotFoundError with its remedy."""
        from huggingface_hub import utils

        try:
            yield
        except utils.GatedRepoError as error:
            raise self.error(
                f"is gated: accept its licence at {self.page}, then run `hf auth login`, set HF_TOKEN, or pass `token`"
            ) from error
        except utils.RepositoryNotFoundError as error:
            raise self.error(
                f"does not exist at {self.page}, or is private. Check the spelling, or pass `token` if it is private"
            ) from error
        except utils.RevisionNotFoundError as error:
            raise self.error(f"has no revision {self.revision!r}. Check `revision`") from error
        except utils.LocalEntryNotFoundError as error:  # what a failed download of a file that is not cached becomes
            raise HubUnreachable(f"{self.page} cannot be reached ({error})", self.remedy) from error
        except utils.EntryNotFoundError as error:
            raise self.error(f"does not give a file that it lists ({error}). Try again") from error
        except utils.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status not in (401, 403):
                raise HubUnreachable(f"{self.page} cannot be reached ({error})", self.remedy) from error
            raise self.error(
                f"may not be read (the hub answers {status}): accept its licence at {self.page}, and check the token "
                "(`hf auth login`, HF_TOKEN or `token`)"
            ) from error
        # Failed connections are of requests' or httpx's types, by the version of huggingface_hub.
        except Exception as error:
            reason = f"{self.page} cannot be reached ({type(error).__name__}: {error})"
            raise HubUnreachable(reason, self.remedy) from error


class ModelScopeRepository(Repository):
    """On ModelScope. ``modelscope`` itself obeys ``MODELSCOPE_ENDPOINT``, ``MODELSCOPE_CACHE`` and
    ``MODELSCOPE_API_TOKEN``."""

    remedy = "check MODELSCOPE_ENDPOINT"

    def __init__(
        self,
        repo_id: str,
        cache_dir: PathLike | None = None,
        revision: str | None = None,
        token: str | None = None,
        force_download: bool = False,
    ) -> None:
        super().__init__(repo_id, cache_dir, revision, token if isinstance(token, str) else None)
        if force_download:
            raise InputError(
                "ModelScope's client has no force_download. Delete the repository's folder in its cache (`modelscope "
                "scan-cache` shows it), or pass another cache_dir."
            )
        try:
            import modelscope  # noqa: F401
        except ImportError as error:
            raise InputError(
                "Models on ModelScope need its client: pip install 'ppsd3[modelscope]' (or modelscope). Without it, "
                "'huggingface:org/name' and directories can be loaded."
            ) from error

    @property
    def page(self) -> str:
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"
        return f"{endpoint}/models/{self.repo_id}"

    @property
    def cache(self) -> str:
        return self.cache_dir or os.environ.get("MODELSCOPE_CACHE") or os.path.expanduser("~/.cache/modelscope")

    def list_files(self) -> list[str]:
        from modelscope.hub.api import HubApi

        with self._explained_errors():
            api = HubApi(token=self.token) if self.token else HubApi()
            files = api.get_model_files(self.repo_id, revision=self.revision or "master", recursive=True)
        return [file["Path"] for file in files if file.get("Type") != "tree"]

    def download(self, files: Sequence[str]) -> str:
        with self._explained_errors():
            return self._snapshot(allow_patterns=list(files))

    def cached(self, file: str) -> str | None:
        with contextlib.suppress(Exception):  # of a type of its own in each version
            path = os.path.join(self._snapshot(local_files_only=True), file)
            if os.path.isfile(path):
                return path
        return None

    def _snapshot(self, **options: Any) -> str:
        from modelscope.hub.snapshot_download import snapshot_download

        if self.token:
            options["token"] = self.token
        return snapshot_download(self.repo_id, revision=self.revision, cache_dir=self.cache_dir, **options)

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Turns what modelscope raises into a CheckpointNotFoundError with its remedy."""
        try:
            yield
        except Exception as error:
            response, said = getattr(error, "response", None), (str(error).splitlines() or [""])[0]
            status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
            named = f"{self.page}" + (f" with the revision {self.revision!r}" if self.revision else "")
            if status == 404 or type(error).__name__ in ("NotExistError", "RevisionNotFoundError"):
                raise self.error(
                    f"does not exist at {named}, or is private. Check the spelling and `revision`, or pass `token`"
                ) from error
            if status in (401, 403):
                raise self.error(
                    f"may not be read ({said}): accept its licence at {self.page}, then run `modelscope login`, set "
                    "MODELSCOPE_API_TOKEN, or pass `token`"
                ) from error
            raise HubUnreachable(
                f"{self.page} cannot be reached ({type(error).__name__}: {said})", self.remedy
            ) from error


# By the name that stands before the id: "modelscope:org/name".
REPOSITORIES: dict[str, type[Repository]] = {"huggingface": HuggingFaceRepository, "modelscope": ModelScopeRepository}
