#!/bin/sh
# Everything that is to be known about a machine with one GPU, in under 9 minutes; all results in one folder.
#
#     sh benchmarks/gpu.sh OUT                              every row, then the table
#     sh benchmarks/gpu.sh OUT --rows tests throughput      some rows; the table shows all that are in OUT
#     sh benchmarks/gpu.sh OUT --device cpu --quick         a few minutes on a CPU: that every row runs; no figures
#
# A row that fails or takes too long is noted with the figures that it had, and the next one is run; what has not
# started after 540 s (--seconds) is left for another call. Beside PyTorch and torchvision this needs
# numpy, pillow, safetensors, tqdm, matplotlib, prefetch_generator and, for the row tests, pytest and hypothesis.
# Where some are missing and nothing can be fetched, carry them. On a machine that can fetch, for that one's Python:
#     python -m pip download --no-deps -d wheels prefetch_generator sortedcontainers attrs
#     python -m pip download --no-deps -d wheels --only-binary :all: --python-version 3.12 hypothesis
# and there unpack them into a folder that PYTHONPATH names (a .tar.gz holds its package one level down):
#     for wheel in wheels/*.whl; do python -m zipfile -e "$wheel" carried; done
#     PYTHONPATH=carried sh benchmarks/gpu.sh OUT
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python}  # what `make setup` made
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"  # -m: the project need not be installed
