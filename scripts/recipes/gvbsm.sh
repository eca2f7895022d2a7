#!/bin/sh
# G-VBSM (Shao et al., CVPR 2024, arXiv 2311.17950), ResNet-18 on ImageNet-1K at 10 images per class.
#
# Published: 31.4 % top-1 (EDC's abstract: 48.6 %, which is 17.2 more).
# Recipe: Branch_full_ImageNet_1k/train/ of github.com/shaoshitong/G_VBSM_Dataset_Condensation: 300 epochs, batch 1024
# at once (ACCUMULATION=4 for ResNet-50 and 101), AdamW 1e-3 with weight decay 0.01 (its defaults), cosine, MSE to the
# logits + 0.1 cross-entropy, cutmix.
# Data: G-VBSM's images and its labels, which several teachers answer, in batches of 1024.
# Not verified: that this very script gave the figure of the paper.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/gvbsm.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/gvbsm}
BATCH_SIZE=${BATCH_SIZE:-1024}
ACCUMULATION=${ACCUMULATION:-1}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION
exec sh "$(dirname "$0")/../../train.sh" "$@"
