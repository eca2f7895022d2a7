#!/bin/sh
# LPQLD (Xiao and He, TPAMI 2026, arXiv 2604.18135), ResNet-18 on ImageNet-1K, labels 40 times smaller.
#
# Published top-1 at 10, 20, 50, 100, 200 images per class: 29.6, 41.2, 51.3, 56.2, 59.9 % (README of
# github.com/he-y/soft-label-pruning-quantization-for-dataset-distillation).
# Recipe: relabel_and_validate/scripts/reproduce/lpqld_in1k.sh there: 300 epochs, batch 128, cosine, KL of the
# renormalised logits, the teacher's temperature from 20 down in steps of 30 epochs by 0.7 to 2, the student's
# calibrated, cutmix; batches are drawn from all that are stored.
# Data: LPLD's images and the labels of LPQLD with MR-100: the 100 largest logits of each view, batches pruned 10 times.
# Not verified: AdamW 1e-3 with weight decay 0.01, taken from the reference run that tests/test_parity_2026.py follows.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/lpqld_40x.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/lpqld_40x}
BATCH_SIZE=${BATCH_SIZE:-128}
ACCUMULATION=${ACCUMULATION:-1}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION LOSS_TYPE TEMPERATURE
exec sh "$(dirname "$0")/../../train.sh" \
    --reuse-labels --num-classes 1000 --student-temperature calibrated \
    --temperature-schedule step --temperature-step-size 30 --temperature-gamma 0.7 "$@"
