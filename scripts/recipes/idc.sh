#!/bin/sh
# Hard labels as IDC (Kim et al., ICML 2022) and Minimax Diffusion (Gu et al., CVPR 2024) evaluate them: ResNetAP-10 on
# ten classes of ImageNet at 10 images per class.
#
# Published: see the tables of the papers for the set in hand; none is quoted here.
# Recipe: train.py, data.py, misc/utils.py and argument.py of github.com/vimar-gu/MinimaxDiffusion (969fc6f): batch 64,
# SGD 0.01 with momentum 0.9 and weight decay 5e-4 on all parameters, the rate times 0.2 at 2/3 and 5/6 of the epochs;
# crops of half of the central square and more, flips, colour jitter, lighting, and cutmix in every batch, whose loss
# weighs both classes by their areas. Every hundredth of the epochs is evaluated, on images of 224 px without a margin,
# and the best is reported, as mean and population deviation over repeats.
# * EPOCHS by images per class: 3000 for 1, 2000 up to 10, 1500 up to 50, 1000 up to 200, 500 up to 500, else 300; with
#   100 classes 2000, 1300, 1000, 600, 300 and 200. --eval-every is a hundredth.
# * More than 100 classes: LR=0.1 WEIGHT_DECAY=1e-4 BATCH_SIZE=128.
# * Other students of the tables: ConvNet-6 and ResNet-18 with instance norm.
# Data: the first images of each class in sorted order (--ipc), and ImageNet's own validation images of these classes.
# Different here: the source resizes and crops twice, to 224 px and then at random; here one resizing does both.
# Not verified: any figure of the papers with this recipe.
#
# Settings as in train_plain.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/idc.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/idc}
MODEL=${MODEL:-resnetap10}
EPOCHS=${EPOCHS:-2000}
BATCH_SIZE=${BATCH_SIZE:-64}
INPUT_SIZE=${INPUT_SIZE:-224}
MILESTONES=${MILESTONES:-2/3 5/6}
GAMMA=${GAMMA:-0.2}
AUGMENT=${AUGMENT:-imagenet-hard}
export OUTPUT_DIR MODEL EPOCHS BATCH_SIZE INPUT_SIZE MILESTONES GAMMA AUGMENT
exec sh "$(dirname "$0")/../../train_plain.sh" --val-resize "$INPUT_SIZE" --eval-every 20 --step-momentum kept "$@"
