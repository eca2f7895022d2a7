#!/bin/sh
# EDC (Shao et al., NeurIPS 2024, arXiv 2404.13733), ResNet-18 on CIFAR-10 at 1 image per class, with a live
# committee.
#
# Published: see the paper's tables; no figure is quoted here.
# Recipe: Branch_CIFAR_10/train/ (direct_train.py, train.sh) of github.com/shaoshitong/EDC (80116a7): 1000 epochs,
# batch 10, AdamW 1e-3 with weight decay 0.01, halved from epochs 800, 900 and 950 on, MSE to the mean of the
# teachers' answers + 0.025 cross-entropy, cutmix, crops of 0.08 of the image and more, flips, the normalisation of
# CIFAR-100. Evaluated are every 10th epoch from 801 on and the last, as an average of the weights: 0.99 of it and
# 0.01 of the weights after each step, from the initial weights, with the batch statistics of the model in training.
# The best is reported.
# Data: EDC's images (EDC_CIFAR_10_Recover_IPC_1_backbone_8) and its eight teachers for CIFAR-10.
# * TEACHER and TEACHER_CHECKPOINT name the teachers and their files, in the same order. This program has ConvNetW128,
#   ConvNetD1, ConvNetD2 and ConvNetW32 under these names. The other four, ResNet18, MobileNetV2, WRN_16_2 and
#   ShuffleNetV2_0_5, are networks of EDC's own code: name them there, as path/to/file.py:FUNCTION.
# Different here: no RandAugment, which the source applies before the crop (torchvision's, with its defaults). The
# student is torchvision's ResNet-18 with a small stem; the source has a ResNet18 of its own.
# Not verified: any figure of the paper with this recipe; that the files of the source's teachers can be read here.
# CIFAR-100, for which the source has SGD, a rate that falls linearly at the end, and five of these teachers, is not
# in this recipe.
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
BATCH_SIZE=${BATCH_SIZE:-10}
INPUT_SIZE=${INPUT_SIZE:-32}
MEAN=${MEAN:-0.5071 0.4867 0.4408}
STD=${STD:-0.2675 0.2565 0.2761}
LOSS_TYPE=${LOSS_TYPE:-mse_gt}
CE_WEIGHT=${CE_WEIGHT:-0.025}
SCHEDULE=${SCHEDULE:-step}
export MODEL OUTPUT_DIR EPOCHS BATCH_SIZE INPUT_SIZE MEAN STD LOSS_TYPE CE_WEIGHT SCHEDULE
[ "$SCHEDULE" != step ] || set -- --milestones 0.8 0.9 0.95 --gamma 0.5 "$@"
case $MODEL in
    resnet18 | resnet50 | resnet101) set -- --stem small "$@" ;;
esac
exec sh "$(dirname "$0")/../../train_live.sh" --ema-decay 0.99 --ema-buffers live --eval-every 10 "$@"
