#!/bin/sh
# RDED (Sun et al., CVPR 2024, arXiv 2312.03526): images of four patches each, and a live teacher. CaO2, DELT and D3HR
# evaluate in the same way or change some settings; their recipes cao2.sh, delt.sh and d3hr.sh call this one.
#
# Published: 42 % top-1 (abstract), ResNet-18 on ImageNet-1K at 10 images per class.
# Recipe: argument.py, validation/main.py and validation/utils.py of github.com/LINs-lab/RDED (3f6453d): 300 epochs of
# AdamW with weight decay 0.01 on matrices, the factor of the rate 0.5 (1 + cos(pi e / 2E)), KL at T = 20 on cutmix
# views (T = 4 with MIX_TYPE=mixup) without a factor T². Patches are shuffled anew for each view; crops cover half of
# the image or more.
# * DATASET is imagenet1k, imagenet100, imagenet10, nette, woof, tiny, cifar10 or cifar100. It determines INPUT_SIZE,
#   SHUFFLE_PATCHES (strips along each side: 2 for ImageNet and its subsets, else 1; "factor" in RDED), VAL_IPC
#   (validation images of each class) and BATCH_SIZE.
# * Batches of 10, 50, 100 images for IPC=1, 10, 50; twice that with 100 or 1000 classes; 100 for tiny; never more than
#   there are images. RDED defines no other IPC; as in DELT, 2 to 9 count as 1 here, 11 to 29 as 10, and from 30 on as
#   50.
# * MODEL determines the rate: 5e-4 for vgg11, 2e-3 for efficientnet_b0, 2.5e-3 for mobilenet_v2, 1e-4 for alexnet,
#   vit_b_16 and swin_v2_t, else 1e-3. ConvNets have batch norm: MODEL=convnet3_bn. With convnet3_bn as student and
#   teacher, cifar100 has batches of 25 and a rate of 2e-3.
# * Of epochs 9, 19, … and the last, those after 0.8 E are evaluated. RDED reports the best of them, which summary.json
#   has as `best`; the headline is the last epoch.
# Data: RDED's images; its class folders 00000, 00001, … are in the order of its teachers' classes. For image sets of
# other projects in another order, give --class-order. Teachers: the files of its Google Drive; for ImageNet-1K
# torchvision's. Images of your own: take the DATASET closest in size and number of classes, and set INPUT_SIZE,
# SHUFFLE_PATCHES (1 if the images are no collages), VAL_IPC (empty: all) and TEACHER_STEM where they differ.
# Different here: RDED forwards each batch through the student a second time, in train mode and without gradients, so
# that batch norm updates its running statistics twice (with momentum 0.1, this equals one update with 0.19). This
# second pass is left out. RDED validates on the first VAL_IPC files of each class in the order of os.listdir, which
# differs between machines; here they are the first in sorted order. So are the first IPC training images.
# Not verified: any figure of the paper with this recipe. Where nothing is drawn at random, the losses are those of
# RDED's code (tests/test_parity_rded.py).
#
# Settings as in train_live.sh, from the environment or as trailing flags:
#
#   IPC=10 DATASET=woof TEACHER_CHECKPOINT=… TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/rded.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/rded}
DATASET=${DATASET:-imagenet1k}
IPC=${IPC:-10}
MODEL=${MODEL:-resnet18}
TEACHER=${TEACHER:-resnet18}
EPOCHS=${EPOCHS:-300}
MIX_TYPE=${MIX_TYPE:-cutmix}
sh "$(dirname "$0")/../whole_numbers.sh" "IPC=$IPC" "EPOCHS=$EPOCHS" "INPUT_SIZE=${INPUT_SIZE:-224}"

patches=2 side=224 val_ipc=50
case $DATASET in
    imagenet1k) classes=1000 ;;
    imagenet100) classes=100 ;;
    imagenet10 | nette | woof) classes=10 ;;
    tiny) classes=200 patches=1 side=64 ;;
    cifar10) classes=10 patches=1 side=32 val_ipc=1000 ;;
    cifar100) classes=100 patches=1 side=32 val_ipc=100 ;;
    *)
        echo "error: DATASET=$DATASET is none of imagenet1k, imagenet100, imagenet10, nette, woof, tiny, cifar10, cifar100" >&2
        exit 2
        ;;
esac
case "$DATASET $MODEL $TEACHER" in
    imagenet1k*convnet*) side=64 ;;
    imagenet100*convnet[56]* | nette*convnet[56]* | woof*convnet[56]*) side=128 ;;
esac
SHUFFLE_PATCHES=${SHUFFLE_PATCHES:-$patches}
INPUT_SIZE=${INPUT_SIZE:-$side}
VAL_IPC=${VAL_IPC-$val_ipc}                     # empty: all

batch=10
[ "$IPC" -lt 10 ] || batch=50
[ "$IPC" -lt 30 ] || batch=100
case $classes in 100 | 1000) batch=$((batch * 2)) ;; 200) batch=100 ;; esac
[ "$batch" -le $((IPC * classes)) ] || batch=$((IPC * classes))
case $MODEL in
    vgg11) rate=0.0005 ;;
    efficientnet_b0) rate=0.002 ;;
    mobilenet_v2) rate=0.0025 ;;
    alexnet | vit_b_16 | swin_v2_t) rate=0.0001 ;;
    *) rate=0.001 ;;
esac
case "$DATASET $TEACHER $MODEL" in "cifar100 convnet3_bn convnet3_bn") batch=25 rate=0.002 ;; esac
BATCH_SIZE=${BATCH_SIZE:-$batch}
LR=${LR:-$rate}
case $MIX_TYPE in mixup) TEMPERATURE=${TEMPERATURE:-4} ;; esac

# ResNets of small images have a 3x3 stem (resnet18_modified in RDED)
stem=standard teacher_stem=standard
if [ "$side" -le 64 ] && [ "$DATASET" != imagenet1k ]; then
    case $MODEL in resnet18 | resnet34 | resnet50 | resnet101 | resnet152) stem=small ;; esac
    case $TEACHER in resnet18 | resnet34 | resnet50 | resnet101 | resnet152) teacher_stem=small ;; esac
fi
from=$((EPOCHS * 4 / 5 + 1))                    # the first epoch after 0.8 E …
from=$((from + (19 - from % 10) % 10))          # … that is 9, 19, 29, …
[ "$from" -lt "$EPOCHS" ] || from=$((EPOCHS - 1))

export OUTPUT_DIR IPC MODEL TEACHER EPOCHS MIX_TYPE INPUT_SIZE BATCH_SIZE LR
if [ -n "${TEMPERATURE:-}" ]; then export TEMPERATURE; fi
# shellcheck disable=SC2017,SC2086  # RDED divides by 7 first; the number of validation images may be missing
exec sh "$(dirname "$0")/../../train_live.sh" --stem "$stem" --teacher-stem ${TEACHER_STEM:-$teacher_stem} \
    --shuffle-patches "$SHUFFLE_PATCHES" --min-scale-crops "$(awk "BEGIN { print 1 / $SHUFFLE_PATCHES }")" \
    --val-resize $((INPUT_SIZE / 7 * 8)) ${VAL_IPC:+--val-ipc $VAL_IPC} --eval-from "$from" --eval-every 10 "$@"
