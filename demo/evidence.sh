#!/bin/sh
# Is it the images or the labels, on the demo's data: three students x three seeds x three regimes x two image sets.
# SEEDS="0 1 2 3 4" make evidence: with more seeds; runs that are finished are not repeated.
# `make evidence` runs it inside .venv; called again, it goes on with what is left.
set -eu
cd "$(dirname "$0")/.."
here=$PWD
# shellcheck source=scripts/launcher.sh
. scripts/launcher.sh
work=demo/work-evidence
export PYTHON

[ -d "$work/data/distilled" ] || {
    rm -rf "$work"
    sh demo/prepare.sh "$work/data"
}
if [ -z "${GPUS-}" ] && ! command -v nvidia-smi >/dev/null; then  # a run per core, each on one thread
    export OMP_NUM_THREADS=1
    GPUS=$(yes 0 | head -n "$(getconf _NPROCESSORS_ONLN)")
    export GPUS
fi
top1=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["top1"])' "$work/data/teacher.json")
export IMAGE_SETS="$work/data/distilled" REAL_DIR="$work/data/train" VAL_DIR="$work/data/val" WORK="$work"
export TEACHER=resnet18 TEACHER_CHECKPOINT="$work/data/teacher.pth" FULL_DATA="resnet18=$top1"
export MODELS="resnet18 resnet10t repvgg_a0" SEEDS="${SEEDS:-0 1 2}" REGIMES="HL SL SL+KD"
export EPOCHS=40 LABEL_EPOCHS=10 ACCUMULATION=1 INPUT_SIZE=32 WORKERS=0 VIEWS="--min-scale-crops 0.5 --hflip 0"
exec "$PYTHON" scripts/evidence.py  # with exec it gets the signals that this shell gets
