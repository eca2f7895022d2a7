"""`python -m utils.labels`."""

import sys

from utils.labels.command import main
from utils.run.teacher_check import run

sys.exit(main(ask_teacher=run))
