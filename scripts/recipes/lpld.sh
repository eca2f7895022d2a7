#!/bin/sh
# LPLD (Xiao and He, NeurIPS 2024, arXiv 2410.15919), ResNet-18 on ImageNet-1K, labels 40 times smaller.
#
# Published top-1 at 10, 20, 50, 100, 200 images per class: 20.2, 33.0, 46.7, 54.0, 59.6 % (README of
# github.com/he-y/soft-label-pruning-for-dataset-distillation).
# Recipe: relabel_and_validate/ there (cfg/reproduce/LPLD_in1k_[4k].yaml): 300 epochs, batch 128 at once, AdamW 1e-3 with
# weight decay 0.01 (its defaults), cosine, KL at T = 20, cutmix; batches are drawn from all that are stored.
# Data: LPLD's images and its 40 times pruned labels, either layout.
# Not verified: that these settings gave every figure of the table.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/lpld.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/lpld}
BATCH_SIZE=${BATCH_SIZE:-128}
ACCUMULATION=${ACCUMULATION:-1}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION LOSS_TYPE TEMPERATURE
exec sh "$(dirname "$0")/../../train.sh" --reuse-labels --label-order sampled "$@"
