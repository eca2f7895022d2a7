#!/bin/sh
# Run all tests and benchmarks that need a GPU, in under 9 minutes. All results go to the folder OUT.
#
#     sh benchmarks/gpu.sh OUT                              every benchmark (row), then the table of results
#     sh benchmarks/gpu.sh OUT --rows tests throughput      some rows; the table shows all rows that are in OUT
#     sh benchmarks/gpu.sh OUT --device cpu --quick         check on a CPU, in a few minutes, that every row runs
#
# If a row fails or takes too long, its results so far are kept, and the next row starts. After 540 s (--seconds) no
# further row starts; run the script again for the rest. It needs PyTorch, torchvision, numpy, pillow, safetensors, tqdm,
# matplotlib and prefetch_generator; the row `tests` also needs pytest and hypothesis.
# If some packages are missing and the GPU machine has no network, download them on another machine, for the Python
# version of the GPU machine:
#     python -m pip download --no-deps -d wheels prefetch_generator sortedcontainers attrs
#     python -m pip download --no-deps -d wheels --only-binary :all: --python-version 3.12 hypothesis
# Copy them to the GPU machine, unpack them into a folder, and name the folder in PYTHONPATH (in a .tar.gz the package
# is one level down):
#     for wheel in wheels/*.whl; do python -m zipfile -e "$wheel" carried; done
#     PYTHONPATH=carried sh benchmarks/gpu.sh OUT
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python}  # the environment of `make setup`
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"  # with -m the project need not be installed
