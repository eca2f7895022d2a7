#!/bin/sh
# DELT (VILA-Lab; github.com/VILA-Lab/DELT): RDED's evaluation without shuffled patches, and with RandAugment.
#
# Published: see the tables of the paper; none is quoted here.
# Recipe: evaluation/ and scripts/resnet18_imagenet1k_validation.sh of github.com/VILA-Lab/DELT (f2f81ca): RandAugment
# rand-m6-n2-mstd1.0 of timm before crops of a quarter of the image or more; otherwise as rded.sh. Epochs 0, 10, 20, …
# and the last are evaluated, and the best is reported. Seeds of the script: --seeds 3407 4663 2897.
# * Batches as in rded.sh; ResNet-101 on ImageNet-1K and ImageNet-100 has batches of half that size.
# Data: DELT's images; teachers as in rded.sh.
# Different here: as in rded.sh; the random numbers of RandAugment are drawn for each view from --fkd-seed.
# Not verified: any figure of the paper with this recipe; RandAugment and crops for sets other than ImageNet-1K.
#
# Settings as in rded.sh, from the environment or as trailing flags:
#
#   IPC=10 TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/delt.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/delt}
SHUFFLE_PATCHES=${SHUFFLE_PATCHES:-1}
sh "$(dirname "$0")/../whole_numbers.sh" "IPC=${IPC:-10}"
case "${DATASET:-imagenet1k} ${MODEL:-resnet18}" in
    "imagenet1k resnet101" | "imagenet100 resnet101")
        batch=10
        [ "${IPC:-10}" -lt 10 ] || batch=50
        [ "${IPC:-10}" -lt 30 ] || batch=100
        BATCH_SIZE=${BATCH_SIZE:-$batch}
        export BATCH_SIZE
        ;;
esac
export OUTPUT_DIR SHUFFLE_PATCHES
exec sh "$(dirname "$0")/rded.sh" --auto-augment rand-m6-n2-mstd1.0 --min-scale-crops 0.25 --eval-from 0 "$@"
