#!/bin/sh
# The demo: data, teacher, labels, student on FKD labels, student on hard labels, table.
# `make demo` runs it inside .venv; every step is a command that a user would type.
set -eu
cd "$(dirname "$0")/.."
work=demo/work
rm -rf "$work"

PYTHON=${PYTHON:-python3}
TRAIN_DIR=$work/distilled VAL_DIR=$work/val FKD_PATH=$work/labels
EPOCHS=100 INPUT_SIZE=32 WORKERS=2
export PYTHON TRAIN_DIR VAL_DIR FKD_PATH EPOCHS INPUT_SIZE WORKERS

echo "== 1/5 images"
"$PYTHON" demo/prepare_data.py "$work"

echo "== 2/5 teacher"
"$PYTHON" demo/train_teacher.py "$work"

echo "== 3/5 FKD labels"
"$PYTHON" relabel_FKD.py --data "$TRAIN_DIR" -a resnet18 --checkpoint "$work/teacher.pth" \
    -b 50 --epochs "$EPOCHS" --input-size "$INPUT_SIZE" -j "$WORKERS" \
    --min-scale-crops 0.5 --hflip 0 --mix-type cutmix --use-fp16 --fkd-path "$FKD_PATH"

echo "== 4/5 student on FKD labels"
OUTPUT_DIR=$work/student_fkd sh train_FKD_10_r18.sh

echo "== 5/5 student on hard labels"
OUTPUT_DIR=$work/student_hard LOSS_TYPE=ce sh train_FKD_10_r18.sh

"$PYTHON" demo/table.py "$work"
