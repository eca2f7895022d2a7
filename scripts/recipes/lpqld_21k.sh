#!/bin/sh
# LPQLD (Xiao and He, TPAMI 2026, arXiv 2604.18135), ResNet-18 on ImageNet-21K-P, labels 40 times smaller.
#
# Published top-1 at 10, 20 images per class: 25.6, 33.8 % (README of
# github.com/he-y/soft-label-pruning-quantization-for-dataset-distillation).
# Recipe: relabel_and_validate/ there (107c7a5, scripts/reproduce/lpqld_in21k.sh and
# cfg/reproduce/LPQLD_in21k_[2k].yaml): that of lpld_21k.sh, with KL of the renormalised logits, the teacher's
# temperature from 20 down in steps of 30 epochs by 0.7 to 2, and the student's calibrated.
# Data: LPLD's images of the 10,450 classes, and labels of LPQLD with the k largest logits of each view (MR-k); their
# 2nd item is a coloured cutout in each view.
# Different here: see lpld_21k.sh. The authors add 0.2 / k, not 0.2 / 10450, to the smoothed logits; the probabilities
# are the same.
# Not verified: which k and which pruning gave the figures.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/lpqld_21k.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/lpqld_21k}
export OUTPUT_DIR
exec sh "$(dirname "$0")/lpld_21k.sh" --num-classes 10450 --student-temperature calibrated \
    --temperature-schedule step --temperature-step-size 30 --temperature-gamma 0.7 "$@"
