#!/bin/sh
# The demo: images, teacher, labels, student on FKD labels, student on hard labels, table.
# `make demo` runs it inside .venv; every step is a command that a user would type.
set -eu
cd "$(dirname "$0")/.."
here=$PWD
# shellcheck source=scripts/launcher.sh
. scripts/launcher.sh
work=demo/work
rm -rf "$work"

TRAIN_DIR=$work/distilled VAL_DIR=$work/val FKD_PATH=$work/labels
EPOCHS=100 INPUT_SIZE=32 WORKERS=2
views="--min-scale-crops 0.5 --hflip 0"
export PYTHON TRAIN_DIR VAL_DIR FKD_PATH EPOCHS INPUT_SIZE WORKERS

sh demo/prepare.sh "$work"

echo "== FKD labels"
# shellcheck disable=SC2086  # flags are words
"$PYTHON" relabel_FKD.py --data "$TRAIN_DIR" -a resnet18 --checkpoint "$work/teacher.pth" \
    -b 50 --epochs "$EPOCHS" --input-size "$INPUT_SIZE" -j "$WORKERS" \
    $views --mix-type cutmix --use-fp16 --fkd-path "$FKD_PATH"

echo "== student on FKD labels"
OUTPUT_DIR=$work/student_fkd sh train_FKD_10_r18.sh

echo "== student on hard labels, same images, ordinary random views"
# shellcheck disable=SC2086
"$PYTHON" train_KD_parallel.py --loss-type ce --model resnet18 --train-dir "$TRAIN_DIR" --val-dir "$VAL_DIR" \
    --batch-size 50 --gradient-accumulation-steps 2 --epochs "$EPOCHS" --cos --input-size "$INPUT_SIZE" \
    -j "$WORKERS" $views --output-dir "$work/student_hard"

"$PYTHON" demo/table.py "$work"
