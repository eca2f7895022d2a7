#!/bin/sh
# SRe2L (Yin et al., NeurIPS 2023, arXiv 2306.13092), ResNet-18 on ImageNet-1K at 50 images per class.
#
# Published: 46.8 % top-1 (quoted in the README of LPLD, as "previous" with full labels).
# Recipe: SRe2L/validate/train_FKD.sh of github.com/VILA-Lab/SRe2L: 300 epochs, batch 1024 as 2 x 512, AdamW 1e-3
# with weight decay 0.01, cosine, KL at T = 20, cutmix.
# Data: SRe2L's images (4,000 iterations, [4K]) and labels of 300 epochs in batches of 1024.
# Not verified: that this very script gave the figure of the paper.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/sre2l.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/sre2l}
BATCH_SIZE=${BATCH_SIZE:-1024}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
export OUTPUT_DIR BATCH_SIZE LOSS_TYPE TEMPERATURE
exec sh "$(dirname "$0")/../../train.sh" "$@"
