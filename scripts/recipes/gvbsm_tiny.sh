#!/bin/sh
# G-VBSM (Shao et al., CVPR 2024, arXiv 2311.17950), ResNet-18 on Tiny-ImageNet at 50 images per class.
#
# Published: see the tables of the paper; no figure is quoted here.
# Recipe: Branch_Tiny_ImageNet/train/ of github.com/shaoshitong/G_VBSM_Dataset_Condensation (eb1d690): 100 epochs, batch
# 100 as 2 x 50, SGD 0.1 with momentum 0.9 and weight decay 5e-4, cosine, MSE to the logits + 0.1 cross-entropy, cutmix,
# images of 64 px with ImageNet's mean and deviation; every tenth epoch and the last are evaluated.
# Data: G-VBSM's images and its labels of 100 epochs, which several teachers answer, in batches of 100 (7 items).
# Not verified: any figure of the paper with this recipe; that the ResNet18 of the source is torchvision's with a 3x3
# stem. A comment in the source gives weight decay 1e-4 for ResNet-18, and its train.sh 5e-4.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/gvbsm_tiny.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/gvbsm_tiny}
EPOCHS=${EPOCHS:-100}
BATCH_SIZE=${BATCH_SIZE:-100}
INPUT_SIZE=${INPUT_SIZE:-64}
export OUTPUT_DIR EPOCHS BATCH_SIZE INPUT_SIZE
exec sh "$(dirname "$0")/../../train.sh" \
    --stem small --sgd -lr 0.1 --momentum 0.9 --weight-decay 5e-4 "$@"
