#!/bin/sh
# LPLD (Xiao and He, NeurIPS 2024, arXiv 2410.15919), ResNet-18 on ImageNet-21K-P, labels 40 times smaller.
#
# Published top-1 at 10, 20 images per class: 21.3, 29.4 % (README of
# github.com/he-y/soft-label-pruning-quantization-for-dataset-distillation).
# Recipe: relabel_and_validate/ of github.com/he-y/soft-label-pruning-for-dataset-distillation (63eee18),
# cfg/reproduce/LPLD_in21k_[2k].yaml and train_FKD_label_pruning_batch.py: 300 epochs, batch 32, AdamW 2e-3 with weight
# decay 0.01, cosine, KL at T = 20, the teacher's logits smoothed by 0.2 (--logit-smoothing), neither mixing nor
# normalisation; batches are drawn from all that are stored. Validation images are squashed to 224 x 224 pixels.
# Data: LPLD's images of the 10,450 classes, and its 40 times pruned labels, either layout; their 2nd item is a coloured
# cutout in each view.
# Different here: the last epoch is the result. A cutout lies where the teacher saw it; in the authors' training
# code, 7 of 224 places are one pixel further up or left.
# Not verified: that these settings gave the figures.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/lpld_21k.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/lpld_21k}
BATCH_SIZE=${BATCH_SIZE:-32}
ACCUMULATION=${ACCUMULATION:-1}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
MIX_TYPE=${MIX_TYPE:-None}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION LOSS_TYPE TEMPERATURE MIX_TYPE
exec sh "$(dirname "$0")/../../train.sh" \
    --reuse-labels --label-order sampled \
    --adamw-lr 0.002 --logit-smoothing 0.2 --mean 0 --std 1 --val-resize squash "$@"
