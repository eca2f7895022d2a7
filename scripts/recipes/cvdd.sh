#!/bin/sh
# CV-DD (Cui et al., 2025, arXiv 2501.07575), labels of a committee; ResNet-18 on ImageNet-1K at 10 images per class.
#
# Published: 46.0 % top-1 (the README of FADRM: 4.0 less than its 50.0).
# Recipe: validate/ and relabel/ of github.com/Jiacheng8/CV-DD (24097e9; rates as in 17e90ce): as fadrm.sh, with 300
# epochs for all sets and its own rates, in the table below.
# * DATASET is imagenet1k, cifar10, cifar100, tiny or nette; MODEL resnet18, resnet50 or resnet101; IPC, the
#   images per class, 1, 10 or 50. For others, LR and ETA are 0.001 and 2 unless they are given.
# Data: CV-DD's images, and its labels, or labels made by this program:
#
#   python relabel_FKD.py --data IMAGES --preset cvdd -b 16 --epochs 300 --mix-type cutmix --use-fp16 --fkd-path LABELS
#
# * --preset cvdd is the source's committee for ImageNet-1K: five teachers, weighted by softmax(figure / 10) of the
#   figures 56.4 42.3 52.5 44.2 40.6, with BSSL (--bssl): batch normalisation uses the statistics of each half of a
#   batch. For other data sets, give the teachers that were trained on them in the same order, resnet18, resnet50,
#   shufflenet_v2, mobilenet_v2 and densenet121: -a MODEL --checkpoint FILE for each, --bssl, and --ensemble-weights
#   exp(figure / 10). The source has the figures 64 60.6 51.6 59.4 56.4 for CIFAR-100 (--ensemble-weights 602 428 174
#   380 281) and 46.5 28.3 43.6 44.8 41.5 for Tiny-ImageNet (--ensemble-weights 104.6 16.9 78.3 88.2 63.4).
#   Sizes below 224 px need --input-size too, CIFAR --mean and --std as in fadrm.sh: training compares them.
# Different here: the teachers' dropout is off. The source leaves its teachers in train mode, so that MobileNetV2 of
# torchvision (ImageNet-1K, Imagenette) drops a fifth of its features at random.
# Not verified: any figure of the paper with this recipe; the labels of ImageNet-1K, for which a script of 17e90ce
# asks ResNet-18 alone; the batch size of other sets than ImageNet-1K, taken from FADRM.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   DATASET=cifar100 MODEL=resnet50 IPC=10 TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/cvdd.sh [flags]
set -eu
DATASET=${DATASET:-imagenet1k}
MODEL=${MODEL:-resnet18}
IPC=${IPC:-10}
OUTPUT_DIR=${OUTPUT_DIR:-save/cvdd}
EPOCHS=${EPOCHS:-300}

# rate/ETA at 1, 10 and 50 images per class
case $DATASET-$MODEL in
    imagenet1k-resnet18 | imagenet1k-resnet50) pairs="0.001/2 0.001/2 0.001/1" ;;
    imagenet1k-resnet101) pairs="0.001/2 0.001/2 0.0005/2" ;;
    cifar10-resnet18 | cifar10-resnet50) pairs="0.001/1 0.001/1 0.001/1" ;;
    cifar10-resnet101 | cifar100-resnet101) pairs="0.0005/1 0.0005/1 0.0005/1" ;;
    cifar100-resnet18 | cifar100-resnet50) pairs="0.001/1 0.001/2 0.001/1" ;;
    tiny-resnet18) pairs="0.001/2 0.001/1 0.001/2" ;;
    tiny-resnet50) pairs="0.001/1 0.001/1 0.001/1" ;;
    tiny-resnet101) pairs="0.0005/2 0.0005/2 0.0005/2" ;;
    nette-resnet18) pairs="0.0005/2 0.0005/1 0.0005/2" ;;
    nette-resnet50) pairs="0.0005/2 0.001/1 0.0005/1" ;;
    nette-resnet101) pairs="0.0005/2 0.0005/2 0.001/2" ;;
    *) pairs="" ;;
esac
case $IPC in
    1) pair=${pairs%% *} ;;
    10) pair=${pairs#* } pair=${pair% *} ;;
    50) pair=${pairs##* } ;;
    *) pair="" ;;
esac
case $DATASET-$pair${LR:-}${ETA:-} in           # fadrm.sh refuses other data sets
    imagenet1k- | cifar10- | cifar100- | tiny- | nette- | woof-)
        echo "no rate is known for $DATASET, $MODEL, IPC $IPC: LR=0.001 ETA=2" >&2
        ;;
esac
pair=${pair:-0.001/2}
LR=${LR:-${pair%/*}}
ETA=${ETA:-${pair#*/}}
export DATASET MODEL IPC OUTPUT_DIR EPOCHS LR ETA
exec sh "$(dirname "$0")/fadrm.sh" "$@"
