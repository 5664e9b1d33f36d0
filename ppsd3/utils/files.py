"""Writing files so that nothing half-written is ever found under its final name."""

import contextlib
import os
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
