"""Entry point of the command `python -m utils.report RUN… --output DIR`, which compares finished runs."""

import sys

from utils.report.command import main
from utils.system.process import run_script

sys.exit(run_script(main))
