#!/bin/sh
# DSA (Zhao and Bilen, ICML 2021, arXiv 2102.08259), ConvNet-3 on CIFAR-10 at 10 images per class.
#
# Published: 52.1 % top-1 (28.8 at 1, 60.6 at 50 images per class; FashionMNIST 70.6, 84.6, 88.7; README of the source).
# Recipe: main.py (306245d), evaluate_synset and DiffAugment of github.com/VICO-UoE/DatasetCondensation: as dc.sh, with
# 1000 epochs (1001, as it counts from 0 to 1000; the rate falls from epoch 502 on) and its augmentation: each batch gets
# one of color, crop, cutout, flip, scale and rotate, with numbers of its own for each image.
# Data: res_DSA_CIFAR10_ConvNet_10ipc.pt of the source, which holds normalised images; MEAN and STD normalise the
# validation images as its data loader does. MNIST and SVHN are evaluated without flips: add --dsa-strategy
# color_crop_cutout_scale_rotate.
# The source makes a new optimizer where the rate falls: the momentum is fresh, which is the default here.
# Not verified: that this very version of the code gave the figures.
#
# Settings as in train_plain.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/dsa.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/dsa}
EPOCHS=${EPOCHS:-1001}
MILESTONES=${MILESTONES:-502}
AUGMENT=${AUGMENT:-dsa}
MEAN=${MEAN:-0.4914 0.4822 0.4465}
STD=${STD:-0.2023 0.1994 0.2010}
export OUTPUT_DIR EPOCHS MILESTONES AUGMENT MEAN STD
exec sh "$(dirname "$0")/../../train_plain.sh" --precision fp32 "$@"
