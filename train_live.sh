#!/bin/sh
# The launcher for training with live teachers, which answer each batch anew. Recipes such as rded.sh call it.
#
#   TEACHER_CHECKPOINT=teacher.pth TRAIN_DIR=… VAL_DIR=… sh train_live.sh     the settings below
#   TEACHER="resnet18 mobilenet_v2" TEACHER_CHECKPOINT="a.pth b.pth" … sh train_live.sh     several teachers
#   sh train_live.sh --seeds 0 1 2 --resume                any flag of train_KD_parallel.py, last word wins
#   NPROC=4 sh train_live.sh                               four processes on this machine, one per GPU
#
# A set with fewer images than BATCH_SIZE is one batch.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/launcher.sh
. "$here/scripts/launcher.sh"

#        variable           default                 flag
setting  WANDB_MODE         disabled                --wandb-mode            # W&B: disabled, online, offline or auto
setting  WANDB_PROJECT      dataset-distillation    --wandb-project

setting  MODEL              resnet18                --model
setting  TRAIN_DIR          data/distilled          --train-dir             # distilled images, one folder per class
setting  VAL_DIR            data/val                --val-dir               # real validation images, likewise
setting  OUTPUT_DIR         "save/$MODEL"           --output-dir
settings TEACHER            resnet18                --teacher-model
settings TEACHER_CHECKPOINT ''                      --teacher-checkpoint    # a file each; empty: pretrained weights
settings TEACHER_STEM       standard                --teacher-stem          # one for all teachers, or one per teacher
settings ENSEMBLE           ''                      --ensemble              # how answers are combined; empty: mean
settings ENSEMBLE_WEIGHTS   ''                      --ensemble-weights      # one per teacher; empty: equal

setting  EPOCHS             300                     --epochs
setting  BATCH_SIZE         100                     --batch-size
setting  ACCUMULATION       1                       --gradient-accumulation-steps
setting  INPUT_SIZE         224                     --input-size
settings MEAN               ''                      --mean                  # one number per channel; empty: the default
settings STD                ''                      --std
settings IPC                ''                      --ipc                   # images of each class; empty: all
setting  WORKERS            4                       --workers
setting  SEED               0                       --seed
setting  LOSS_TYPE          kl                      --loss-type
setting  CE_WEIGHT          0.1                     --ce-weight             # of the losses mse_gt, mae_gt and gift
setting  TEMPERATURE        20                      --temperature           # of the losses kl, dist and softce
setting  MIX_TYPE           cutmix                  --mix-type
setting  LR                 0.001                   --adamw-lr
setting  WEIGHT_DECAY       0.01                    --adamw-weight-decay
setting  SCHEDULE           smoothed                --schedule

launch train_KD_parallel.py "$@"
