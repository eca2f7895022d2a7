"""The lock of an output folder: refused while its holder lives, taken over afterwards, optional if unsupported."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.system.errors import InputError
from utils.system.files import FolderLock

HOLD_WITH_A_WORKER = """
import os, sys
from utils.system.files import FolderLock
lock = FolderLock(sys.argv[1])
if os.fork() == 0:
    sys.stdin.read()  # lives until the test closes the pipe
    os._exit(0)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_worker_that_outlives_its_parent_holds_no_lock(tmp_path):
    """Refused, twice and with the holder's name, while the process lives; free after SIGKILL, though its fork lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_WITH_A_WORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout.readline() == "locked\n"
        for _ in range(2):  # a refused attempt must not erase what the holder wrote
            with pytest.raises(InputError, match=rf"in use by process {process.pid} on host \S+, started \d{{4}}-"):
                FolderLock(tmp_path)
        process.kill()
        process.wait()
        lock = FolderLock(tmp_path)
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
        lock.release()
    finally:
        process.kill()
        process.stdin.close()
        process.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch):
    """The folder is used without a lock."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())
