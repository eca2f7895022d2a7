#!/bin/sh
# HALD (arXiv 2512.15647), ResNet-18 on ImageNet-1K at 10 images and 100 soft labels per class.
#
# Published top-1: 42.7 % (arXiv 2512.15647v2; the abstract on OpenReview says 41.8 %).
# Recipe: validate/ of github.com/Jiacheng8/HALD (scripts/imagenet1k/train.sh, hyper.yaml): 150 epochs on soft labels
# and 150 on hard ones, in the order 75 soft, 150 hard, 75 soft; batch 16 at once, KL at T = 20, AdamW 1e-3 with
# weight decay 0.01, one cosine stretched by 2 over all epochs (by 1 at 50 images per class: --smoothing 1), cutmix;
# hard epochs show new random crops and flips with cutmix, on labels smoothed by 0.8. It evaluates every 10 epochs and
# keeps the best.
# Data: the images that HALD's labels were made for, and these labels: epoch_0.tar, …, sampler_indices_dict.pt. 100
# labels per class are 10 epochs of 10 images.
# Different here: after the hard epochs the pool of stored batches goes on; HALD starts another one, in another order.
# Not verified: which images gave the figure, whether it is the last epoch's or the best one's, and that the labels'
# views are of 224 pixels.
#
# Settings as in train.sh, and HARD_EPOCHS, of EPOCHS; from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/hald.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/hald}
BATCH_SIZE=${BATCH_SIZE:-16}
ACCUMULATION=${ACCUMULATION:-1}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
SCHEDULE=${SCHEDULE:-smoothed}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION LOSS_TYPE TEMPERATURE SCHEDULE
exec sh "$(dirname "$0")/../../train.sh" --smoothing 2 --reuse-labels --hard-epochs "${HARD_EPOCHS:-150}" "$@"
