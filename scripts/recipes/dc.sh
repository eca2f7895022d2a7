#!/bin/sh
# DC (Zhao et al., ICLR 2021, arXiv 2006.05929), ConvNet-3 on CIFAR-10 at 10 images per class.
#
# Published: 44.9 % top-1 (28.3 at 1, 53.9 at 50 images per class; FashionMNIST 70.5, 82.3, 83.6; README of the source),
# the mean over 5 sets and 20 students of each.
# Recipe: evaluate_synset in utils.py of github.com/VICO-UoE/DatasetCondensation: batch 256, SGD 0.01 with momentum 0.9
# and weight decay 5e-4 on all parameters, cross-entropy, no augmentation, last epoch. Its 300 epochs are 301, as it
# counts from 0 to 300, and the rate falls by 10 after epoch 151, so from epoch 152 on.
# Data: res_DC_CIFAR10_ConvNet_10ipc.pt of the source, which holds normalised images; MEAN and STD normalise the
# validation images as its data loader does. FashionMNIST: INPUT_SIZE=28 MEAN=0.2861 STD=0.3530.
# The source makes a new optimizer where the rate falls: the momentum is fresh, which is the default here.
# Not verified: MNIST, for which the source uses crops, scalings and rotations of its own, and 1000 epochs.
#
# Settings as in train_plain.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/dc.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/dc}
MEAN=${MEAN:-0.4914 0.4822 0.4465}
STD=${STD:-0.2023 0.1994 0.2010}
export OUTPUT_DIR MEAN STD
exec sh "$(dirname "$0")/../../train_plain.sh" --precision fp32 "$@"
