#!/bin/sh
# MTT (Cazenavette et al., CVPR 2022, arXiv 2203.11932), ConvNet-3 on CIFAR-10 at 10 images per class.
#
# Published: see the paper's tables, on ZCA-whitened images of CIFAR; no figure is quoted here.
# Recipe: evaluate_synset in utils.py of github.com/GeorgeCazenavette/mtt-distillation: as dsa.sh, 1000 epochs (1001) and
# the augmentation of DSA; the learning rate is the one that was distilled with the images.
# Data: images_best.pt and labels_best.pt. LR must be given: the learned rate, syn_lr in its log (lr_best.pt where a
# project saves it).
# * If the set is ZCA-whitened, add --zca REAL_TRAIN_SET, so that the validation images are whitened too. In the commands
#   of its README, the source whitens CIFAR-100 (--zca) and does not whiten ImageNet's subsets.
# * ImageNet's subsets at 128 px: MODEL=convnet5 INPUT_SIZE=128 MEAN="0.485 0.456 0.406" STD="0.229 0.224 0.225".
# The source makes a new optimizer where the rate falls: the momentum is fresh, which is the default here.
# Not verified: any figure of the paper with this recipe, and for which numbers of images the published CIFAR sets are whitened.
#
# Settings as in train_plain.sh, from the environment or as trailing flags:
#
#   LR=… TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/mtt.sh [flags]
set -eu
: "${LR:?give the learning rate that was distilled with the images, syn_lr of MTT: LR=0.02 sh scripts/recipes/mtt.sh}"
OUTPUT_DIR=${OUTPUT_DIR:-save/mtt}
export OUTPUT_DIR LR
exec sh "$(dirname "$0")/dsa.sh" "$@"
