"""Write files atomically, and lock folders against other processes."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils.system.errors import InputError


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path, at which the caller writes the new content of `path`.

    The temporary file is in the same folder as `path`. If the `with` block ends without an error, the temporary file is
    fsynced and renamed to `path`. Otherwise it is removed, and `path` is unchanged.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except Exception as error:
        reason = why_unwritable(error)
        if reason is None:
            raise
        raise InputError(f"{path} cannot be written ({reason}); free some space or choose another folder") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def why_unwritable(error: Exception) -> str | None:
    """Return in words why a file could not be written, or None for an error of another kind.

    For every OSError a reason is returned. Other errors are recognised by their text, because `torch.save` and
    safetensors report a failed write with their own exception types, which have no errno.
    """
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "the disk is full" if full else error.strerror or str(error)
    words = "PytorchStreamWriter", "inline_container", "No space left", "os error"
    return "the disk is full, or fails" if any(word in str(error) for word in words) else None


def sync_folder(folder: Path | str) -> None:
    """Fsync a folder, so that a rename in it survives a power cut; do nothing if the file system cannot fsync it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: Path | str) -> None:
    """Make a folder and its parents.

    Raises:
        InputError: the folder cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be made ({error.strerror}); give another folder") from None


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file atomically, two-space indented."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


@contextlib.contextmanager
def utf8_path(path: Path | str) -> Iterator[str]:
    """Yield a valid UTF-8 path of the file `path`. Some libraries reject all other paths.

    If `path` is valid UTF-8, yield `path`. Otherwise open the file until the `with` block ends, and yield the path
    /dev/fd/N of the open file.

    Raises:
        OSError: `path` is not valid UTF-8, and the file cannot be opened.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield os.fspath(path)


def can_open(count: int) -> bool:
    """Return whether this process can open `count` more files before it reaches the limit on open files (ulimit -n)."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return False
    return True


def folder_bytes(path: str | Path) -> int:
    """Return the total size in bytes of all files in a folder and its sub-folders."""
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def digest_of(path: Path | str) -> str:
    """Return the BLAKE2b digest of a file's content: 16 bytes, as 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """Return the BLAKE2b digest of a text, encoded as UTF-8: 16 bytes, as 32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class FolderLock:
    """Lock on a folder, so that only one process at a time writes to it.

    The constructor creates a file `.lock` in the folder, locks this file, and writes the process id, host name and
    start time into it. The operating system releases the lock when the process ends, even if it is killed. A `.lock`
    file that a killed process left behind can therefore be locked again. Worker processes do not inherit the lock. If
    the file system does not support locks, the folder is used without a lock.

    The `filelock` package is not used, for these reasons:

    * Up to version 3.20, it empties the file before it has the lock, so the file no longer tells who has the lock.
    * Up to version 3.20, forked worker processes keep the lock if their parent process is killed.
    * On file systems without locks, versions up to 4.3 raise an error, or leave a marker file behind after a kill.

    Raises:
        InputError: another process has locked the folder. The message gives its process id, host and start time.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / ".lock"
        self.file = self._locked()
        # if the process that had the lock removed the file `.lock` in the meantime, try again with a new file
        while not self._is_current():
            self.file.close()
            self.file = self._locked()
        self.file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self.file.write(f"process {os.getpid()} on host {platform.node()}, started {started}\n")
        self.file.flush()

    def _locked(self) -> IO[str]:
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), "r+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                with file:
                    holder = file.read(200).strip() or "another process"
                raise InputError(
                    f"--output-dir {self.path.parent} is in use by {holder}; wait for it, or give another folder"
                ) from None
            # errors other than EACCES and EAGAIN mean that the file system does not support locks: go on without a lock
        return file

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file `.lock` and release the lock, so that other processes may use the folder."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.file.close()
