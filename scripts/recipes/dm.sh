#!/bin/sh
# DM (Zhao and Bilen, WACV 2023, arXiv 2110.04181), ConvNet-3 on CIFAR-10 at 10 images per class.
#
# Published: see table 2 of the paper; no figure is quoted here.
# Recipe: main_DM.py and utils.py of github.com/VICO-UoE/DatasetCondensation: as dsa.sh, 1000 epochs (1001) and the
# augmentation of DSA with color_crop_cutout_flip_scale_rotate.
# Data: res_DM_CIFAR10_ConvNet_10ipc.pt of the source, which holds normalised images; MEAN and STD normalise the
# validation images as its data loader does.
# The source makes a new optimizer where the rate falls: the momentum is fresh, which is the default here.
# Not verified: any figure of the paper with this recipe.
#
# Settings as in train_plain.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/dm.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/dm}
export OUTPUT_DIR
exec sh "$(dirname "$0")/dsa.sh" "$@"
