"""A run that is killed at random moments, also while it writes a checkpoint, ends the same after a resume.

python tests/test_kill.py 20      kill one run twenty times
"""

import sys
import tempfile
import time
from pathlib import Path

from helpers import EPOCHS, Tiny, make_images, make_labels
from kill_runs import check, kill_and_resume


def test_a_run_killed_three_times_ends_the_same(tiny, tmp_path):
    """The kills hit random moments of training, evaluation and writing."""
    done, killed, whole = kill_and_resume(tiny, tmp_path, 3, 4, seed=0)
    assert done >= 1
    check(killed, whole)


def main(kills):
    """Kill one run `kills` times and check the result."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train_dir, val_dir = make_images(root / "train"), make_images(root / "val", per_class=2, seed=1)
        tiny = Tiny(train_dir, val_dir, make_labels(root / "labels", epochs=EPOCHS))
        done, killed, whole = kill_and_resume(tiny, root, kills, 2 * kills, seed=time.time_ns())
        check(killed, whole)
    print(f"{done} of {kills} SIGKILLs hit a run in progress; resumed, it ended bit-identical")


if __name__ == "__main__":
    main(int(sys.argv[1]))
