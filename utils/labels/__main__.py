"""`python -m utils.labels`."""

import sys

from utils.labels.command import main
from utils.run.teacher_check import CHECK

sys.exit(main(teacher_check=CHECK))
