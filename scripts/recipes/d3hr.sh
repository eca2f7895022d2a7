#!/bin/sh
# D3HR (Zhao et al., ICML 2025): images of a diffusion model, RDED's evaluation without shuffled patches.
#
# Published: see the tables of the paper; none is quoted here.
# Recipe: validation/ of github.com/lin-zhao-resoLve/D3HR (8ba351d): as rded.sh, except for
# * crops of 0.08 of the image or more, all validation images, 400 epochs on CIFAR, five repeats (--seeds 0 1 2 3 4);
# * batches of 100 images from IPC=50 on, of 50 from IPC=10 on, else of 15; twice that with 100 classes, not with 1000;
# * each epoch from 291 on is evaluated (the last nine of 300, or 109 of 400), and the best is reported.
# With several teachers its code averages their logits, on unmixed views: name all in TEACHER and TEACHER_CHECKPOINT (on
# small images their stems in TEACHER_STEM), with MIX_TYPE=None. With hard labels (ImageWoof) it trains for 2000,
# 1500 or 1000 epochs at IPC=10, 50 or 100 on views mixed by mixup with alpha 1.
# Data: D3HR's images; teachers as in rded.sh.
# Different here: as in rded.sh.
# Not verified: any figure of the paper with this recipe.
#
# Settings as in rded.sh, from the environment or as trailing flags; DATASET is imagenet1k, tiny, cifar10 or cifar100:
#
#   IPC=10 TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/d3hr.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/d3hr}
DATASET=${DATASET:-imagenet1k}
IPC=${IPC:-10}
SHUFFLE_PATCHES=${SHUFFLE_PATCHES:-1}
VAL_IPC=${VAL_IPC-}
sh "$(dirname "$0")/../whole_numbers.sh" "IPC=$IPC" "EPOCHS=${EPOCHS:-300}"

batch=15 epochs=300
[ "$IPC" -lt 10 ] || batch=50
[ "$IPC" -lt 50 ] || batch=100
case $DATASET in
    cifar10) epochs=400 ;;
    cifar100) epochs=400 batch=$((batch * 2)) ;;
    imagenet1k | tiny) ;;
    *)
        echo "error: DATASET=$DATASET is none of imagenet1k, tiny, cifar10, cifar100" >&2
        exit 2
        ;;
esac
case "$DATASET $IPC" in "cifar10 1") batch=10 ;; esac     # never more than there are images
BATCH_SIZE=${BATCH_SIZE:-$batch}
EPOCHS=${EPOCHS:-$epochs}
from=291
[ "$from" -lt "$EPOCHS" ] || from=$((EPOCHS - 1))
export OUTPUT_DIR DATASET IPC SHUFFLE_PATCHES VAL_IPC BATCH_SIZE EPOCHS
exec sh "$(dirname "$0")/rded.sh" --min-scale-crops 0.08 --eval-from "$from" --eval-every 1 "$@"
