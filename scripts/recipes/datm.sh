#!/bin/sh
# DATM (Guo et al., ICLR 2024, arXiv 2310.05773), ConvNet-3 on CIFAR-10 at 10 images per class.
#
# Published: see the paper's tables, on ZCA-whitened images of CIFAR; no figure is quoted here.
# Recipe: distill/evaluation.py of github.com/NUS-HPC-AI-Lab/DATM and utils/utils_baseline.py of NUS-HPC-AI-Lab/PAD: as
# mtt.sh, with soft labels: cross-entropy with the softmax of the stored logits, at temperature 1.
# Data: images_best.pt, labels_best.pt [N, C], which holds logits, and lr_best.pt, the learned rate, which LR must give.
# * If the set is ZCA-whitened, as configs/CIFAR-10/ConvIN of the source has it (zca: True), add --zca REAL_TRAIN_SET, so
#   that the validation images are whitened too.
# The source makes a new optimizer where the rate falls: the momentum is fresh, which is the default here.
# Not verified: any figure of the paper with this recipe, and the batch size. evaluation.py leaves it to a default; the source's
# configuration for 10 images per class says 128, with 100 images at once either way.
#
# Settings as in train_plain.sh, from the environment or as trailing flags:
#
#   LR=… TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/datm.sh [flags]
set -eu
: "${LR:?give the learning rate that was distilled with the images, in lr_best.pt: LR=0.02 sh scripts/recipes/datm.sh}"
OUTPUT_DIR=${OUTPUT_DIR:-save/datm}
export OUTPUT_DIR LR
exec sh "$(dirname "$0")/dsa.sh" "$@"
