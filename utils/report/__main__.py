"""Entry point of `python -m utils.report RUN… --output DIR` and `python -m utils.report --compare A B`."""

import sys

from utils.report.command import main
from utils.system.process import run_script

sys.exit(run_script(main))
