#!/bin/sh
# EDC (Shao et al., NeurIPS 2024, arXiv 2404.13733), ResNet-18 on CIFAR-10 at 1 image per class, with a live
# committee; with DATASET=cifar100 on CIFAR-100 at 50 images per class.
#
# Published: see the paper's tables; no figure is quoted here.
# Recipe: Branch_CIFAR_10/train/ and Branch_CIFAR_100/train/ (direct_train.py, train.sh) of github.com/shaoshitong/EDC
# (80116a7; train.sh of CIFAR-100 as in 32d5765): 1000 epochs, MSE to the mean of the teachers' answers + 0.025
# cross-entropy, cutmix, crops, flips, the normalisation of CIFAR-100 for both. An average of the weights is
# evaluated: 0.99 of it and 0.01 of the weights after each step, from the initial weights, with the batch statistics of
# the model in training. The best evaluation is reported, which summary.json has as `best`; the headline is the last
# epoch.
# * cifar10: batch 10, AdamW 1e-3 with weight decay 0.01, halved from epochs 800, 900 and 950 on; crops of 0.08 of the
#   image or more; epochs 810, 820, … and the last are evaluated.
# * cifar100: batch 50, SGD 0.1 with momentum 0.875 and weight decay 5e-4, the schedule cos2; crops of half of the
#   image or more; epochs 0, 100, … and the last are evaluated.
# Data: EDC's images (EDC_CIFAR_10_Recover_IPC_1_backbone_8) and its teachers for CIFAR-10 or CIFAR-100.
# * TEACHER and TEACHER_CHECKPOINT name the teachers and their files, in the same order. CIFAR-10 has eight: ResNet18,
#   ConvNetW128, MobileNetV2, WRN_16_2, ShuffleNetV2_0_5, ConvNetD1, ConvNetD2 and ConvNetW32; CIFAR-100 the first
#   five. This program has the four ConvNets under these names. The others are networks of EDC's own code: name them
#   there, as path/to/file.py:FUNCTION.
# Different here: no RandAugment. The source applies torchvision's before the crop, with its defaults; --auto-augment
# is timm's, whose operations and strengths are others. The student is torchvision's ResNet-18 with a small stem; the
# source has a ResNet18 of its own.
# Not verified: any figure of the paper with this recipe; that the files of the source's teachers can be read here.
#
# Settings as in train_live.sh, from the environment or as trailing flags:
#
#   TEACHER="ConvNetW128 ConvNetD1 …" TEACHER_CHECKPOINT="a.pth b.pth …" TRAIN_DIR=… VAL_DIR=… \
#     sh scripts/recipes/edc_cifar.sh [flags]
set -eu
: "${TEACHER:?name the teachers: TEACHER='ConvNetW128 ConvNetD1 nets.py:ResNet18' sh scripts/recipes/edc_cifar.sh}"
: "${TEACHER_CHECKPOINT:?give a file for each of TEACHER, in the same order: TEACHER_CHECKPOINT='a.pth b.pth c.pth'}"
OUTPUT_DIR=${OUTPUT_DIR:-save/edc_cifar}
MODEL=${MODEL:-resnet18}
EPOCHS=${EPOCHS:-1000}
sh "$(dirname "$0")/../whole_numbers.sh" "EPOCHS=$EPOCHS"
INPUT_SIZE=${INPUT_SIZE:-32}
MEAN=${MEAN:-0.5071 0.4867 0.4408}
STD=${STD:-0.2675 0.2565 0.2761}
LOSS_TYPE=${LOSS_TYPE:-mse_gt}
CE_WEIGHT=${CE_WEIGHT:-0.025}
DATASET=${DATASET:-cifar10}
case $DATASET in
    cifar10)
        BATCH_SIZE=${BATCH_SIZE:-10}
        SCHEDULE=${SCHEDULE:-step}
        [ "$SCHEDULE" != step ] || set -- --milestones 0.8 0.9 0.95 --gamma 0.5 "$@"
        set -- --eval-from $((EPOCHS * 81 / 100)) "$@"
        ;;
    cifar100)
        BATCH_SIZE=${BATCH_SIZE:-50}
        SCHEDULE=${SCHEDULE:-cos2}
        set -- --sgd -lr "${LR:-0.1}" --momentum 0.875 --weight-decay "${WEIGHT_DECAY:-5e-4}" --smoothing 2 \
            --min-scale-crops 0.5 --eval-every 100 "$@"
        ;;
    *)
        echo "error: DATASET=$DATASET is none of cifar10, cifar100" >&2
        exit 2
        ;;
esac
case $MODEL in
    resnet18 | resnet50 | resnet101) set -- --stem small "$@" ;;
esac
export OUTPUT_DIR MODEL EPOCHS BATCH_SIZE INPUT_SIZE MEAN STD LOSS_TYPE CE_WEIGHT SCHEDULE
exec sh "$(dirname "$0")/../../train_live.sh" --ema-decay 0.99 --ema-buffers live "$@"
