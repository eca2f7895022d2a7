#!/bin/sh
# EDC (Shao et al., NeurIPS 2024, arXiv 2404.13733), ResNet-18 on ImageNet-1K at 10 images per class.
#
# Published: 48.6 % top-1 (abstract).
# Recipe: Branch_full_ImageNet_1k/train/ of github.com/shaoshitong/EDC (80116a7): 300 epochs, batch 100 at once, AdamW
# 1e-3 with weight decay 0.01, MSE to the logits + 0.025 cross-entropy, cutmix; every 30th epoch and the
# last are evaluated.
# * An average of the weights is evaluated: 0.99 of it and 0.01 of the weights after each step, from the initial
#   weights; the running statistics of batch normalisation are those of the model in training (--ema-buffers live).
# * The script asks for a cosine stretched by 2, and a chain of conditions below overwrites it with the linear rate
#   1 - e/600, which ends at half of 1e-3 (--schedule linear-smoothed). SCHEDULE=smoothed takes the cosine of the paper.
#   Earlier versions of the script (1981347) take that cosine, and average nothing.
# Data: EDC's images and its labels, the answers of four teachers to crops of half of the image or more, in batches
# of 100. Its labels for ImageNet-1K have 8 items, the last of them zeros. relabel_FKD.py --preset edc -b 100
# --min-scale-crops 0.5 --mix-type cutmix --use-fp16 --epochs 300 asks the same teachers.
# Not verified: that this version of the script gave the figure of the paper; the paper averages, as this one does.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/edc.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/edc}
BATCH_SIZE=${BATCH_SIZE:-100}
ACCUMULATION=${ACCUMULATION:-1}
CE_WEIGHT=${CE_WEIGHT:-0.025}
SCHEDULE=${SCHEDULE:-linear-smoothed}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION CE_WEIGHT SCHEDULE
exec sh "$(dirname "$0")/../../train.sh" --smoothing 2 --ema-decay 0.99 --ema-buffers live --eval-every 30 "$@"
