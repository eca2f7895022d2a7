# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""`python -m utils.labels`."""

import sys

from utils.config import VerifyConfig, parse_label_command
from utils.system.process import check_command_line

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below, which take seconds
    check_command_line(parse_label_command)

from utils.labels.command import main


def ask_teacher(config: VerifyConfig) -> bool:
    """Verify labels with a teacher, if the flags name one; see `run` in utils/run/teacher_check.py."""
    from utils.run.teacher_check import run  # imports torchvision, which `info`, `pack` and `unpack` do not need

    return run(config)


sys.exit(main(ask_teacher=ask_teacher))
