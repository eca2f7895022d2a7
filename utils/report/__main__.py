"""Entry point of `python -m utils.report RUN… --output DIR`."""

import sys

from utils.report.command import main
from utils.system.process import run_script

sys.exit(run_script(main))
