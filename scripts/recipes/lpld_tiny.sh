#!/bin/sh
# LPLD (Xiao and He, NeurIPS 2024, arXiv 2410.15919), ResNet-18 on Tiny-ImageNet.
#
# Published: see the tables of the paper; no figure is quoted here.
# Recipe: relabel_and_validate/ of github.com/he-y/soft-label-pruning-for-dataset-distillation (63eee18),
# cfg/reproduce/LPLD_tiny_[4k].yaml, scripts/reproduce/main_table_tiny.sh and train_FKD_label_pruning_batch.py: 100
# epochs, batch 64 at once, SGD 0.2 with momentum 0.9 and weight decay 1e-4, five epochs of linear warm-up from a
# hundredth of the rate, then a cosine over the other 95; KL at T = 20 times T² = 400; unmixed views of 64 px; batches
# are drawn from all that are stored. Every tenth epoch and the last are evaluated, on images of 64 px as they are.
# * Labels that were not pruned at all are visited in order: --label-order stored.
# * The source trains in one process, and says that this matters.
# Data: LPLD's images of Tiny-ImageNet and its labels, in epoch folders.
# Different here: when the source draws the short last batch of a stored epoch, it takes the batch before.
# Not verified: any figure of the paper with this recipe.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/lpld_tiny.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/lpld_tiny}
EPOCHS=${EPOCHS:-100}
BATCH_SIZE=${BATCH_SIZE:-64}
ACCUMULATION=${ACCUMULATION:-1}
INPUT_SIZE=${INPUT_SIZE:-64}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
MIX_TYPE=${MIX_TYPE:-None}
export OUTPUT_DIR EPOCHS BATCH_SIZE ACCUMULATION INPUT_SIZE LOSS_TYPE TEMPERATURE MIX_TYPE
[ "$LOSS_TYPE" != kl ] || set -- --loss-scale-t2 "$@"
exec sh "$(dirname "$0")/../../train.sh" \
    --stem small --mean 0.4802 0.4481 0.3975 --std 0.2302 0.2265 0.2262 \
    --sgd -lr 0.2 --momentum 0.9 --weight-decay 1e-4 --warmup-epochs 5 --warmup-factor 0.01 \
    --reuse-labels --label-order sampled "$@"
