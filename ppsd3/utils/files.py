"""Writing files so that nothing half-written is ever found under its final name."""

import contextlib
import os
import shutil
import tempfile


@contextlib.contextmanager
def atomic_write(path):
    """Opens a temporary binary file beside ``path``; renames it to ``path`` on success, deletes it on any failure."""
    directory = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=os.path.basename(path) + ".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # mkstemp makes the file private to its owner; a checkpoint has the permissions of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def staging_directory(target):
    """A temporary directory beside ``target``, hence on the same disk, so that moving into place copies nothing."""
    staging = tempfile.mkdtemp(dir=os.path.dirname(target), prefix=os.path.basename(target) + ".", suffix=".tmp")
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_into(staging, target, last):
    """Replaces in ``target`` what ``staging`` has under the same name; the file called ``last`` moves last."""
    os.makedirs(target, exist_ok=True)
    for name in sorted(os.listdir(staging), key=lambda name: name == last):
        final = os.path.join(target, name)
        if os.path.isdir(final):
            shutil.rmtree(final)
        os.replace(os.path.join(staging, name), final)
