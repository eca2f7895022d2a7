"""Files that exist whole or not at all."""

import contextlib
import errno
import json
import os
from pathlib import Path

from utils.errors import InputError


@contextlib.contextmanager
def atomic_file(path):
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number is None and "write" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        reason = "the disk is full" if number == errno.ENOSPC or number is None else os.strerror(number)
        raise InputError(f"{path} cannot be written ({reason}); free some space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder):
    """Make a rename in `folder` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path, text):
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def write_json(path, value):
    """Write a JSON file atomically, two-space indented."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")
