#!/bin/sh
# CIM (Shang et al., ECCV 2026), ResNet-18 on ImageNet-1K at 10 images per class.
#
# Published: 48.7 % top-1 (README of github.com/LINs-lab/CIM).
# Recipe: data/utils/evaluator.py and main.py there (ea71377): as gift.sh, with the mean squared error to the logits of
# the live teacher, without cross-entropy. 300 epochs, batch 100, AdamW 1e-3 with weight decay 1e-4 on all parameters,
# the rate times 0.2 at 2/3 and 5/6; four evaluations, whose best is reported, over three runs (--seeds 0 1 2).
# * Other sets than ImageNet-1K: EPOCHS=1000. BATCH_SIZE as in gift.sh.
# * Students: LR=2e-3 for efficientnet_b0, LR=1e-4 for vit_tiny_patch16_224 and swin_v2_t.
# Data: CIM's data.pt, whose images consist of 2 x 2 small ones (FACTOR_CROP=2), and a teacher with the student's
# architecture.
# Not verified: the figure with this recipe.
#
# Settings as in train_live.sh, from the environment or as trailing flags:
#
#   TEACHER_CHECKPOINT=… TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/cim.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/cim}
LOSS_TYPE=${LOSS_TYPE:-mse_gt}
CE_WEIGHT=${CE_WEIGHT:-0}
export OUTPUT_DIR LOSS_TYPE CE_WEIGHT
exec sh "$(dirname "$0")/gift.sh" "$@"
