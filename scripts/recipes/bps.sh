#!/bin/sh
# BPS (Shi et al., CVPR 2026): a selection of real images, and a live teacher.
#
# Published: see the tables of the paper; none is quoted here.
# Recipe: stage3_training.py and script/ of github.com/BeCarefulOfYournaoke/BPS (7d016db): 500 epochs of AdamW 1e-3 with
# weight decay 0.01 on all parameters, the factor of the rate 0.5 (1 + cos(pi e / 2E)), KL at T = 20 times T² on cutmix
# views. The last 21 epochs are evaluated and the best is reported; three runs (--seeds 0 1 2).
# * DATASET is imagenet1k, tiny, cifar10 or cifar100. DATASET and IPC determine the smallest crop and the batch size.
#   For ImageNet-1K these are 0.2 (1 for ViT) and 128, 256, 512 at 10, 50, 100 images per class; the table below has
#   those of the other sets. Any other IPC gets 0.2 and 128.
# * Validation images are resized to the input size, for ImageNet-1K to 256 px.
# Data: the images that its authors released; teachers: those of CCFS for small images, torchvision's for ImageNet-1K.
# Not verified: any figure of the paper with this recipe.
#
# Settings as in train_live.sh, from the environment or as trailing flags:
#
#   IPC=10 TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/bps.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/bps}
DATASET=${DATASET:-imagenet1k}
IPC=${IPC:-10}
MODEL=${MODEL:-resnet18}
EPOCHS=${EPOCHS:-500}
sh "$(dirname "$0")/../whole_numbers.sh" "IPC=$IPC" "EPOCHS=$EPOCHS" "INPUT_SIZE=${INPUT_SIZE:-224}"

stem=small teacher_stem=small
case "$DATASET $IPC" in
    "cifar10 10") crop=0.1 batch=16 ;;
    "cifar10 50") crop=0.2 batch=16 ;;
    "cifar10 250") crop=0.4 batch=32 ;;
    "cifar10 500") crop=0.6 batch=64 ;;
    "cifar10 1000") crop=0.9 batch=128 ;;
    "cifar10 1500") crop=1 batch=128 ;;
    "cifar100 25") crop=0.4 batch=32 ;;
    "cifar100 150") crop=1 batch=128 ;;
    "cifar10 100" | "cifar100 10" | "tiny 10") crop=0.2 batch=32 ;;
    "cifar100 50" | "tiny 50") crop=0.6 batch=64 ;;
    "cifar100 100" | "tiny 100") crop=0.9 batch=128 ;;
    "imagenet1k 10") crop=0.2 batch=128 ;;
    "imagenet1k 50") crop=0.2 batch=256 ;;
    "imagenet1k 100") crop=0.2 batch=512 ;;
    *) crop=0.2 batch=128 ;;
esac
case $DATASET in
    imagenet1k)
        stem=standard teacher_stem=standard side=224 margin=32
        case $MODEL in vit_b_16 | vit_small_patch16_224) crop=1 ;; esac
        ;;
    tiny) side=64 margin=0 ;;
    cifar10 | cifar100) side=32 margin=0 ;;
    *)
        echo "error: DATASET=$DATASET is none of imagenet1k, tiny, cifar10, cifar100" >&2
        exit 2
        ;;
esac
case $MODEL in resnet18 | resnet34 | resnet50 | resnet101 | resnet152) ;; *) stem=standard ;; esac
case ${TEACHER:-resnet18} in resnet18 | resnet34 | resnet50 | resnet101 | resnet152) ;; *) teacher_stem=standard ;; esac
BATCH_SIZE=${BATCH_SIZE:-$batch}
INPUT_SIZE=${INPUT_SIZE:-$side}
from=$((EPOCHS > 21 ? EPOCHS - 21 : 0))
export OUTPUT_DIR IPC MODEL EPOCHS BATCH_SIZE INPUT_SIZE
[ "${LOSS_TYPE:-kl}" != kl ] || set -- --loss-scale-t2 "$@"
# shellcheck disable=SC2086  # one stem for all teachers, or one per teacher
exec sh "$(dirname "$0")/../../train_live.sh" --stem "$stem" --teacher-stem ${TEACHER_STEM:-$teacher_stem} --decay-all \
    --min-scale-crops "$crop" --val-resize $((INPUT_SIZE + margin)) --eval-from "$from" --eval-every 1 "$@"
