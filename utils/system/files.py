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
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is unchanged.
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
    """Return why a write failed, or None if the error has nothing to do with writing.

    `torch.save` and safetensors report a failed write with exceptions of their own, which have no errno.
    """
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "the disk is full" if full else error.strerror or str(error)
    words = "PytorchStreamWriter", "inline_container", "No space left", "os error"
    return "the disk is full, or fails" if any(word in str(error) for word in words) else None


def sync_folder(folder: Path | str) -> None:
    """Fsync a folder, so that a rename inside survives a power cut; ignore file systems that cannot do so."""
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
    """Yield `path`, or if it is not valid UTF-8, a path in /dev/fd to the same file, for libraries that need UTF-8.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield os.fspath(path)


def can_open(count: int) -> bool:
    """Return whether this process may open `count` more files, under its limit (ulimit -n)."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return False
    return True


def folder_bytes(path: str | Path) -> int:
    """Return the total size of all files in and below a folder, in bytes."""
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def digest_of(path: Path | str) -> str:
    """Return the BLAKE2b digest of a file's content (16 bytes, as hex), as manifests store it."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """Return the BLAKE2b digest of a text in UTF-8 (16 bytes, as hex)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class FolderLock:
    """Lock that keeps other processes out of a folder: a locked file `.lock` in the folder.

    The operating system releases the lock however the process ends, so a `.lock` file that was left behind is taken
    over. Worker processes do not inherit the lock. If the file system has no locks, the folder is used without a lock.

    The `filelock` package is no replacement. Up to 3.20 it truncates the file before it has the lock, which erases the
    holder's line; and forked workers keep the lock after this process was killed. Up to 4.3, if the file system has no
    locks, it raises an error, or falls back to a marker file that no one removes after a kill.

    Raises:
        InputError: another process holds the folder; the message gives its pid, host and start time.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / ".lock"
        self.file = self._locked()
        while not self._is_current():  # the previous holder removed the file after we opened it
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
            # any other error: the file system has no locks, so go on without one
        return file

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and release the lock."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.file.close()
