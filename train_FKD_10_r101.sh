#!/bin/sh
# ResNet-101 on ImageNet-1K distilled to 10 images per class: 300 epochs, batch 50 as 2 x 25, AdamW 1e-3,
# cosine, MSE to the stored logits + 0.1 cross-entropy, cutmix. Settings as in train.sh, from the
# environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh train_FKD_10_r101.sh [flags]
set -eu
MODEL=${MODEL:-resnet101}
OUTPUT_DIR=${OUTPUT_DIR:-save/fkd_10_r101}
export MODEL OUTPUT_DIR
exec sh "$(dirname "$0")/train.sh" "$@"
