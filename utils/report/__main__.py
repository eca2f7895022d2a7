# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""Entry point of `python -m utils.report RUN… --output DIR` and `python -m utils.report --compare A B`."""

import sys

from utils.config import ReportConfig
from utils.system.process import check_command_line, run_script

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below
    check_command_line(ReportConfig.parse, needed={"tqdm": "tqdm", "scipy": "scipy"})

from utils.report.command import main

sys.exit(run_script(main))
