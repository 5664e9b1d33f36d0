"""Writes files and directories so that whoever opens them finds all of the old or all of the new.

What is written goes into a temporary file or directory first (:mod:`ppsd3.utils.temporary`), reaches the disk, and
takes its place by one rename:

- a file, and a directory that is new, by a plain one;
- a directory that exists by Linux's exchange of two names. Other files in the old one are linked into the new one
  before;
- a directory that cannot be exchanged (a mounted disk, the current directory, one whose parent may not be written, one
  with hundreds of other files, another system than Linux) keeps its place: the new files wait in it under
  ``.ppsd3-committed`` from the rename on, and move to their names then. If that is interrupted, the next reader or
  writer completes it; a reader that may not write sees it completed (:func:`settled`).

Readers of several files use :func:`read_whole`, which reads again if a save came in between.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

from . import temporary
from .errors import CheckpointError, DiskError, InputError
from .types import PathLike
from .weight_names import is_component_file

COMMITTED = temporary.PREFIX + "committed"  # files that are the directory's above from now on
_GONE = temporary.PREFIX + "gone"  # in it, an empty file in place of each that goes

_MOST_OTHERS = 256  # files that are linked into a new directory; one with more is no checkpoint's own
_ATTEMPTS = 20  # to read a directory that is saved into again and again
_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of disks
_unfinished: set[str] = set()  # the directories that this process is writing

T = TypeVar("T")
Stale = Callable[[str, str], bool]


@contextlib.contextmanager
def atomic_write(path: PathLike, needed: int = 0) -> Iterator[IO[bytes]]:
    """Opens a binary file that takes the place of ``path`` when the body ends, and vanishes if that fails.

    A file that is replaced keeps its permissions. A pipe or a device is written to directly.

    Args:
        needed: bytes that will be written, if that is known. While both are there, the disk holds the old and the new.

    Raises:
        DiskError: the disk has less room than ``needed``, is full, or is broken.
    """
    path, made = os.path.abspath(path), None
    directory = os.path.dirname(path)
    if needed:
        require_space(directory, needed, path)
    try:
        if _is_part_of_unfinished(path) or not _can_be_replaced(path):
            with open(path, "wb") as file:
                yield file
            return
        temporary.remove_leftovers(directory)
        made, descriptor = temporary.make_file(directory)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            _take_place(file, made, path)
    except BaseException as error:
        if made is not None:
            temporary.remove(made)
        _explain(error, path, needed)
        raise


def write_new(path: PathLike, content: bytes | memoryview) -> str:
    """Writes a file under a name that was free to this instant, whoever writes beside: ``path``, or with ``-2``,
    ``-3``, ... before its extension.

    Returns:
        The name.

    Raises:
        DiskError: the disk is full or broken.
    """
    path = os.fspath(path)
    stem, extension = os.path.splitext(path)
    names = itertools.chain([path], (f"{stem}-{number}{extension}" for number in itertools.count(2)))
    directory = os.path.dirname(os.path.abspath(path))
    try:
        temporary.remove_leftovers(directory)
        made, descriptor = temporary.make_file(directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                return next(name for name in names if _is_placed(made, name))
        finally:
            temporary.remove(made)
    except OSError as error:
        _explain(error, path, len(content))
        raise


@contextlib.contextmanager
def replacing(directory: PathLike, stale: Stale = lambda path, new: False, needed: int = 0) -> Iterator[str]:
    """A directory to write into, whose files become ``directory``'s when the body ends, and vanish if that fails.

    Other files of ``directory`` stay. What is written within the body to a directory in the new one is a part of the
    same save.

    Args:
        directory: made if missing; a link to one stays a link.
        stale: ``(path in directory, the new directory)`` -> whether this other file goes, as one of an earlier save.
        needed: bytes that will be written. While both are there, the disk holds the old and the new files.

    Yields:
        str: the path of the new directory.

    Raises:
        InputError: ``directory`` is a file.
        DiskError: the disk has less room than ``needed``, is full, or is broken.
    """
    target = os.path.realpath(directory)
    if os.path.lexists(target) and not os.path.isdir(target):
        raise InputError(f"{directory} is a file; this is saved into a directory. Choose another name.")
    if _is_part_of_unfinished(target):
        os.makedirs(target, exist_ok=True)
        yield target
        return
    parent = os.path.dirname(target)
    os.makedirs(parent, exist_ok=True)
    settled(target)
    for place in (parent, target):
        temporary.remove_leftovers(place)
    place = parent if not os.path.lexists(target) or _can_be_exchanged(target) else target
    require_space(place, needed, target)
    try:
        made, descriptor = temporary.make_directory(place)
        _unfinished.add(made)
        try:
            yield made
            _sync_tree(made)
            _commit(made, target, stale)
        finally:
            _unfinished.discard(made)
            if descriptor is not None:
                os.close(descriptor)
            temporary.remove(made)
    except OSError as error:
        _explain(error, target, needed)
        raise


def append_text(path: PathLike, text: str) -> None:
    """Adds ``text`` to the end of a file, which is made if missing: a log, of which a killed process may lose the end.

    Raises:
        DiskError: the disk is full or broken.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        _explain(error, os.fspath(path), len(text))
        raise


def require_space(directory: str, needed: int, name: PathLike | None = None) -> None:
    """Raises DiskError unless the disk of ``directory`` has ``needed`` bytes free for what is called ``name``."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskError(
            f"{os.fspath(name or directory)} cannot be saved: it needs {needed / 1e9:.2f} GB, and the disk of "
            f"{directory} has {free / 1e9:.2f} GB free. Free some space, choose another directory, or save in a 16-bit "
            "dtype."
        )


def require_writable(path: PathLike, what: str) -> None:
    """Raises InputError, in which the file ``path`` is called ``what``, unless it can be written."""
    path = os.path.abspath(path)
    directory = os.path.dirname(path)
    if os.path.isdir(path):
        raise InputError(f"{what}: {path} is a directory. Choose another name.")
    if not os.path.isdir(directory):
        raise InputError(f"{what}: the directory {directory} does not exist. Make it first, or choose another.")
    if not os.access(directory if _can_be_replaced(path) else path, os.W_OK):
        raise InputError(f"{what}: no permission to write to {directory}. Choose another directory.")
    if not shutil.disk_usage(directory).free:
        raise DiskError(f"{what}: the disk of {directory} is full. Free some space, or choose another directory.")


def read_whole(directory: str, read: Callable[[str], T], subfolder: str | None = None) -> T:
    """``read(directory)``, or ``read`` of its ``subfolder``, where all files that it opens are of one save.

    It is called again if a save replaced files in the meantime, so it should do nothing but read.

    Raises:
        CheckpointError: that happened too often. And whatever ``read`` raises.
    """
    if subfolder:
        return read_whole(directory, lambda root: read_whole(os.path.join(root, subfolder), read))
    for _ in range(_ATTEMPTS):
        found = settled(directory)
        with temporary.locked(found, exclusive=False):
            before = _generation(found)
            try:
                result = read(found)
            except Exception:
                if _generation(found) == before:
                    raise
                continue
            if _generation(found) == before:
                return result
    raise CheckpointError(f"{directory} is saved into all the time, and changes while it is read. Try again later.")


def settled(directory: str) -> str:
    """``directory``, after a save into it or into its parent that was interrupted late has been completed.

    Where that may not be written, the path of a directory of links to the files as they would be.
    """
    try:
        real = os.path.realpath(directory)
    except ValueError:  # no system has such a name, and whoever opens it says so
        return directory
    for root, rest in ((real, ""), os.path.split(real)):
        if is_interrupted(root):
            try:
                with temporary.locked(root, exclusive=True):
                    _complete(root)
            except OSError:
                return os.path.join(_completed_view(root), rest)
    return directory


def is_interrupted(root: str) -> bool:
    """Whether a save into ``root`` waits to be completed, by somebody who might have written there at once."""
    try:
        status, above = os.lstat(os.path.join(root, COMMITTED)), os.stat(root)
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    return not above.st_mode & stat.S_ISVTX or status.st_uid in (above.st_uid, os.geteuid())


def is_temporary(name: str) -> bool:
    """Whether ``name`` is one of those that saves use until they are complete."""
    return name.startswith(temporary.PREFIX)


def _commit(made, target, stale):
    if not os.path.lexists(target) and _renamed(made, target):
        _sync(os.path.dirname(target))
        return
    with temporary.locked(target, exclusive=True):
        _complete(target)
        if not _exchange(made, target, stale):
            for path in _others(target, made, stale)[1]:
                _touch(os.path.join(made, _GONE, path))
            _sync_tree(made)
            while not _renamed(made, os.path.join(target, COMMITTED)):
                _complete(target)  # another save, which did not wait for a lock that readers held for long
            _sync(target)
            _complete(target)


def _renamed(made, target):
    """Renames a directory, unless another one is there; whether that was done."""
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


# A directory that changes places with the old one.


def _can_be_exchanged(target):
    """Whether nothing depends on ``target`` being the directory that it is, and another may take its place."""
    if _exchange_names() is None or os.path.ismount(target) or _is_in(_working_directory(), target):
        return False
    status, writable = os.stat(target), os.W_OK | os.X_OK
    # New files take group and permissions from the directory, where it says so.
    has_rules = status.st_mode & stat.S_ISGID or any(
        name.startswith("system.posix_acl") for name in _attributes(target)
    )
    may_be = os.access(os.path.dirname(target), writable) and os.access(target, writable)
    return may_be and status.st_uid == os.geteuid() and not has_rules


def _working_directory():
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _is_in(path, directory):
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def _exchange(made, target, stale):
    """Exchanges the complete directory ``made`` and ``target``; returns whether that can be done."""
    exchange = _exchange_names()
    if exchange is None or os.path.dirname(made) != os.path.dirname(target) or not _can_be_exchanged(target):
        return False
    others = _others(target, made, stale)[0]
    if others is None:
        return False
    try:
        _link(others, target, made)
        shutil.copymode(target, made)
        status = os.stat(target)
        os.chown(made, status.st_uid, status.st_gid)
        _sync_tree(made, files=False)
        exchange(made, target)
    except OSError:
        return False
    _sync(os.path.dirname(target))
    for path in _others(made, target, stale)[0] or ():  # what came while the others were linked
        there = os.path.join(target, path)
        if not os.path.lexists(there):  # else it is a directory of both, or moved with one
            os.rename(os.path.join(made, path), there)
    return True


def _others(old, new, stale, inside=""):
    """The files and directories of ``old`` that ``new`` lacks, by path: those that stay, and those that are stale.

    In place of the first None, if there are too many, or some that cannot be linked.
    """
    stay, gone = [], []
    with os.scandir(os.path.join(old, inside)) as entries:
        for entry in entries:
            path = os.path.join(inside, entry.name)
            there = os.path.join(new, path)
            if os.path.lexists(there) and os.path.isdir(there) != entry.is_dir():
                raise InputError(
                    f"{entry.path} is a {'directory' if entry.is_dir() else 'file'}, where a "
                    f"{'file' if entry.is_dir() else 'directory'} of this name is to be saved. Rename it."
                )
            if is_temporary(entry.name):  # a save at work must not lose its place
                stay = None if entry.name == COMMITTED or temporary.is_alive(entry.path) else stay
            elif stale(path, new):
                gone += [] if os.path.lexists(there) else [path]
            elif entry.is_dir(follow_symlinks=False):
                if stay is None and inside and not os.path.isdir(there):
                    continue  # whatever is in it, it stays where it is
                more, more_gone = _others(old, new, stale, path)
                if more == [] and more_gone and not os.path.lexists(there):  # nothing of it stays
                    gone.append(path)
                    continue
                if stay is None or more is None or not os.access(entry.path, os.W_OK | os.X_OK):
                    stay = None
                else:
                    stay = [*stay, path, *more]
                gone += more_gone
            elif not os.path.lexists(there) and stay is not None:
                stay = [*stay, path] if entry.is_file() or entry.is_symlink() else None
            if stay is not None and len(stay) > _MOST_OTHERS:
                stay = None
    return stay, gone


def _link(paths, old, new):
    """Links the files ``paths`` of ``old`` into ``new``, and makes the directories among them."""
    for path in paths:
        source, there = os.path.join(old, path), os.path.join(new, path)
        if os.path.isdir(source) and not os.path.islink(source):
            os.makedirs(there, exist_ok=True)
            shutil.copymode(source, there)
        else:
            os.link(source, there, follow_symlinks=False)


@functools.cache
def _exchange_names():
    """A function that exchanges two paths in one step, or None where the system has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    at_working_directory, exchange = -100, 2

    def exchanged(one, other):
        arguments = (at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange)
        if function(*arguments):
            raise OSError(ctypes.get_errno(), "the two cannot be exchanged", one, None, other)

    return exchanged


def _attributes(path):
    try:
        return os.listxattr(path)
    except (OSError, AttributeError):
        return []


# A directory that keeps its place.


def _complete(target):
    """Moves what a save has committed in ``target`` to its names there; may be interrupted and called again.

    Never leaves ``target``, whatever links are in it: the files may come from a stranger. Where two processes are at
    it, for want of locks, each does what is left; and only what is empty is removed, which may be another save by now.
    """
    if not is_interrupted(target):
        return
    committed = os.path.join(target, COMMITTED)
    if _is_directory(os.path.join(committed, _GONE)):
        _remove_gone(os.path.join(committed, _GONE), target)
    _move(committed, target)
    _sync(target)


def _remove_gone(gone, target):
    """Removes the files in ``target`` that ``gone`` has the names of, and ``gone``; without a ``target`` only that."""
    for entry in _entries(gone):
        there = None if target is None else os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False):
            _remove_gone(entry.path, there if there and _is_directory(there) else None)
            continue
        with contextlib.suppress(FileNotFoundError):
            if there is not None:
                shutil.rmtree(there) if _is_directory(there) else os.unlink(there)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.path)
    if target is not None:
        _sync(target)
    with contextlib.suppress(OSError):
        os.rmdir(gone)


def _move(source, target):
    """Moves all files in ``source`` to the same names in ``target``, and removes ``source``."""
    for entry in _entries(source):
        there = os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False):
            if not _is_directory(there):
                temporary.remove(there)
                os.makedirs(there, exist_ok=True)
            _move(entry.path, there)
            continue
        if _is_directory(there):
            shutil.rmtree(there)
        with contextlib.suppress(FileNotFoundError):
            os.replace(entry.path, there)
            os.unlink(entry.path)  # it is there still if both were one file
    _sync(target)
    with contextlib.suppress(OSError):
        os.rmdir(source)


def _entries(directory):
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _completed_view(target):
    """A directory of links to the files of ``target`` as they would be after :func:`_complete`."""
    status = os.stat(os.path.join(target, COMMITTED))
    return _view(target, status.st_ino, status.st_mtime_ns)


@functools.cache
def _view(target, *version):
    view = tempfile.mkdtemp(prefix="ppsd3-view-")
    atexit.register(temporary.remove, view)
    committed = os.path.join(target, COMMITTED)
    _show(committed, view)
    _show(target, view, hidden=os.path.join(committed, _GONE))
    return view


def _show(source, view, hidden=None):
    """Links the files of ``source`` into ``view``, but for those that are there already or in ``hidden``."""
    with os.scandir(source) as entries:
        for entry in entries:
            there = os.path.join(view, entry.name)
            inside = None if hidden is None else os.path.join(hidden, entry.name)
            if is_temporary(entry.name) or (os.path.lexists(there) and not _is_directory(there)):
                continue
            if entry.is_dir(follow_symlinks=False):
                os.makedirs(there, exist_ok=True)
                _show(entry.path, there, inside)
            elif not os.path.lexists(there) and not (inside and os.path.isfile(inside)):
                os.symlink(entry.path, there)


# What all of these need.


def _generation(directory):
    """Changes when a save replaces files in ``directory``, or the directory itself."""
    try:
        status = os.stat(directory)
        with os.scandir(directory) as entries:
            names = sorted((e.name, e.inode()) for e in entries if is_component_file(e.name) or e.is_dir())
    except OSError:
        return None
    return status.st_dev, status.st_ino, [name for name in names if not is_temporary(name[0])]


def _is_placed(made, name):
    """Gives the complete file ``made`` the name ``name``; whether that was free."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(made, name)
        except FileExistsError:
            raise
        except OSError:  # a disk without links: takes the name, then fills it
            os.close(os.open(name, os.O_CREAT | os.O_EXCL))
            os.replace(made, name)
        return True
    return False


def _take_place(file, made, path):
    """Has the open temporary file ``made`` take the place of ``path``, with its permissions."""
    file.flush()
    os.fsync(file.fileno())
    if os.path.exists(path):
        shutil.copymode(path, made)
    if os.name == "nt":  # which renames no open file; elsewhere nobody takes it for a leftover as long as it is open
        file.close()
    os.replace(made, path)


def _is_part_of_unfinished(path):
    return any(_is_in(path, made) for made in tuple(_unfinished))


def _can_be_replaced(path):
    """Whether ``path`` is new or a file, and no pipe, terminal or device such as /dev/stdout."""
    if os.path.realpath(path).startswith(("/dev/fd/", "/proc/")) or os.path.dirname(path) == "/dev":
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def _is_directory(path):
    return os.path.isdir(path) and not os.path.islink(path)


def _touch(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass


def _sync_tree(directory, files=True):
    """Has the disk keep all that is in ``directory``."""
    for folder, _, names in os.walk(directory):
        for name in names if files else ():
            _sync(os.path.join(folder, name))
        _sync(folder)


def _sync(path):
    """Has the disk keep the file or the names in the directory ``path``, where the file system can be told so."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _FAILURES:
            raise
    finally:
        os.close(descriptor)


def _explain(error, path, needed):
    """Raises a better error than ``error``, for which ``path`` could not be written, if a disk is the cause."""
    if not isinstance(error, OSError) or isinstance(error, CheckpointError):
        return
    if temporary.PREFIX in str(error.filename):
        error.filename = path  # the name that its user knows
    if error.errno in _FAILURES:
        room = f"{needed / 1e9:.3f} GB are needed, and " if needed else ""
        with contextlib.suppress(OSError):
            room += f"its disk has {shutil.disk_usage(os.path.dirname(path)).free / 1e9:.3f} GB free"
        raise DiskError(
            f"{path} could not be written ({os.strerror(error.errno)}; {room}). What was there before is there still. "
            "Free some space, or choose another directory."
        ) from error


def bytes_in(path: str) -> int:
    """Bytes of a file, or of all files below a directory; 0 if there is none."""
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names] or [path]
    return sum(os.lstat(file).st_size for file in files if os.path.lexists(file))
