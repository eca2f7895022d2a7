#!/bin/sh
# The launcher with the settings to edit. The recipes (train_FKD_10_r18.sh, …) call it.
#
#   sh train.sh                                    the settings below
#   MODEL=resnet50 TRAIN_DIR=… sh train.sh         settings from the environment
#   sh train.sh --epochs 100 --resume              any flag of train_FKD_parallel.py, last word wins
#   NPROC=4 sh train.sh                            four processes on this machine, one per GPU
#
# One optimizer step takes BATCH_SIZE images, in ACCUMULATION micro-batches: 50 = 2 x 25.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/launcher.sh
. "$here/scripts/launcher.sh"

#       variable        default                 flag
setting WANDB_MODE      disabled                --wandb-mode    # the W&B switch: disabled, online, offline or auto
setting WANDB_PROJECT   dataset-distillation    --wandb-project

setting MODEL           resnet18                --model
setting TRAIN_DIR       data/distilled          --train-dir     # distilled images, one folder per class
setting VAL_DIR         data/val                --val-dir       # real validation images, one folder per class
setting FKD_PATH        data/labels             --fkd-path      # FKD labels: epoch_0, epoch_1, …
setting OUTPUT_DIR      "save/$MODEL"           --output-dir

setting EPOCHS          300                     --epochs
setting BATCH_SIZE      50                      --batch-size    # that of the labels
setting ACCUMULATION    2                       --gradient-accumulation-steps
setting INPUT_SIZE      224                     --input-size
setting WORKERS         4                       --workers
setting SEED            0                       --seed
setting LOSS_TYPE       mse_gt                  --loss-type
setting CE_WEIGHT       0.1                     --ce-weight
setting TEMPERATURE     20                      --temperature   # used by the losses kl, dist and softce
setting MIX_TYPE        cutmix                  --mix-type
setting SCHEDULE        cos                     --schedule      # linear, linear-smoothed, cos, smoothed, cos2 or prism

launch train_FKD_parallel.py "$@"
