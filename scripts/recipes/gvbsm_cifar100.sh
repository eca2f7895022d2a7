#!/bin/sh
# G-VBSM (Shao et al., CVPR 2024, arXiv 2311.17950), ConvNet-3 on CIFAR-100 at 10 images per class.
#
# Published: see the tables of the paper; no figure is quoted here.
# Recipe: Branch_CIFAR_100/train/ of github.com/shaoshitong/G_VBSM_Dataset_Condensation (eb1d690): 1000 epochs, batch 64
# at once, SGD 0.1 with momentum 0.9 and weight decay 5e-4, cosine, MSE to the logits + 0.15 cross-entropy, cutmix,
# images of 32 px; every tenth epoch and the last are evaluated.
# * MODEL=resnet18 and --stem small for ResNet-18, which the script names too.
# Data: G-VBSM's images and its labels of 1000 epochs, which several teachers answer, in batches of 64 (7 items).
# Not verified: any figure of the paper with this recipe.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/gvbsm_cifar100.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/gvbsm_cifar100}
MODEL=${MODEL:-convnet3}
EPOCHS=${EPOCHS:-1000}
BATCH_SIZE=${BATCH_SIZE:-64}
ACCUMULATION=${ACCUMULATION:-1}
INPUT_SIZE=${INPUT_SIZE:-32}
CE_WEIGHT=${CE_WEIGHT:-0.15}
export OUTPUT_DIR MODEL EPOCHS BATCH_SIZE ACCUMULATION INPUT_SIZE CE_WEIGHT
exec sh "$(dirname "$0")/../../train.sh" \
    --mean 0.5071 0.4867 0.4408 --std 0.2675 0.2565 0.2761 --sgd -lr 0.1 --momentum 0.9 --weight-decay 5e-4 "$@"
