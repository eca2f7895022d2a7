#!/bin/sh
# The launcher for training on the labels of the images themselves, without a teacher. Recipes such as
# dc.sh call it.
#
#   sh train_plain.sh                                      the settings below
#   TRAIN_DIR=… VAL_DIR=… MODEL=resnet18 sh train_plain.sh settings from the environment
#   sh train_plain.sh --seeds 0 1 2 --resume               any flag of train_KD_parallel.py, last word wins
#   NPROC=4 sh train_plain.sh                              four processes on this machine, one per GPU
#
# A set with fewer images than BATCH_SIZE is one batch.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/launcher.sh
. "$here/scripts/launcher.sh"

#        variable       default                 flag
setting  WANDB_MODE     disabled                --wandb-mode    # the W&B switch: disabled, online, offline or auto
setting  WANDB_PROJECT  dataset-distillation    --wandb-project

setting  MODEL          convnet3                --model
setting  TRAIN_DIR      data/distilled          --train-dir     # distilled images
setting  VAL_DIR        data/val                --val-dir       # real images for validation
setting  OUTPUT_DIR     "save/$MODEL"           --output-dir

setting  EPOCHS         301                     --epochs
setting  BATCH_SIZE     256                     --batch-size
setting  ACCUMULATION   1                       --gradient-accumulation-steps
setting  INPUT_SIZE     32                      --input-size
settings MEAN           ''                      --mean          # one number per channel; empty: the program's default
settings STD            ''                      --std
setting  WORKERS        4                       --workers
setting  SEED           0                       --seed
setting  LOSS_TYPE      ce                      --loss-type
setting  LR             0.01                    --learning-rate
setting  MOMENTUM       0.9                     --momentum
setting  WEIGHT_DECAY   5e-4                    --weight-decay  # on all parameters
settings MILESTONES     152                     --milestones    # epochs, or shares of all such as 2/3 5/6
setting  GAMMA          0.1                     --gamma
setting  AUGMENT        none                    --augment       # none, dsa, imagenet-hard or rrc

launch train_KD_parallel.py --sgd --decay-all --schedule step "$@"
