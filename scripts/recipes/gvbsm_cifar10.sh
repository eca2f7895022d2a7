#!/bin/sh
# G-VBSM (Shao et al., CVPR 2024, arXiv 2311.17950), ResNet-18 on CIFAR-10 at 10 images per class.
#
# Published: see the tables of the paper; no figure is quoted here.
# Recipe: Branch_CIFAR_10/train/ of github.com/shaoshitong/G_VBSM_Dataset_Condensation (eb1d690): 1000 epochs, batch 100
# at once, AdamW 1e-3 without weight decay, cosine, MSE to the logits + 0.15 cross-entropy, cutmix, images of 32 px with
# the mean and deviation of CIFAR-100; every tenth epoch and the last are evaluated.
# * MODEL=convnet3 is the source's ConvNetW128; add --stem standard.
# Data: G-VBSM's images and its labels of 1000 epochs, which several teachers answer, in batches of 100 (7 items).
# Not verified: any figure of the paper with this recipe; that the ResNet18 of the source is torchvision's with a 3x3
# stem.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/gvbsm_cifar10.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/gvbsm_cifar10}
EPOCHS=${EPOCHS:-1000}
BATCH_SIZE=${BATCH_SIZE:-100}
ACCUMULATION=${ACCUMULATION:-1}
INPUT_SIZE=${INPUT_SIZE:-32}
CE_WEIGHT=${CE_WEIGHT:-0.15}
export OUTPUT_DIR EPOCHS BATCH_SIZE ACCUMULATION INPUT_SIZE CE_WEIGHT
exec sh "$(dirname "$0")/../../train.sh" \
    --stem small --mean 0.5071 0.4867 0.4408 --std 0.2675 0.2565 0.2761 --adamw-weight-decay 0 "$@"
