#!/bin/sh
# WMDD (Liu et al., ICCV 2025), ResNet-18 on ImageNet-1K, Tiny-ImageNet or ImageNette; its labels weigh the images.
#
# Published: no figure was read for this recipe; compare with the paper.
# Recipe: train/ of github.com/Liu-Hy/WMDD (45c2962): 300 epochs, batch 100 at once (10 times the images per class for
# ten classes with fewer than 10 images each: BATCH_SIZE), AdamW 1e-3 with weight decay 0.01, cosine, cutmix, KL at
# T = 20. The KL of each image is multiplied by its weight over the mean weight of the batch.
# Data: WMDD's images and its labels of 7 items, the last of them the weights. They are 1 over the images per class,
# so without effect, unless its relabelling was given --weight-wb.
# Different here: the last epoch is the result.
# Not verified: which weights gave the figures of the paper. For Tiny-ImageNet its ResNets have a stem of one 7x7
# convolution with stride 2 without pooling, which --stem does not have.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/wmdd.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/wmdd}
BATCH_SIZE=${BATCH_SIZE:-100}
ACCUMULATION=${ACCUMULATION:-1}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION LOSS_TYPE TEMPERATURE
exec sh "$(dirname "$0")/../../train.sh" "$@"
