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

wandb_mode=${WANDB_MODE:-disabled}              # the W&B switch: disabled, online, offline or auto
wandb_project=${WANDB_PROJECT:-dataset-distillation}

model=${MODEL:-resnet18}
train_dir=${TRAIN_DIR:-data/distilled}          # distilled images, one folder per class
val_dir=${VAL_DIR:-data/val}                    # real validation images, one folder per class
output_dir=${OUTPUT_DIR:-save/$model}
teacher=${TEACHER:-resnet18}
checkpoint=${TEACHER_CHECKPOINT:-}              # one file per teacher; empty: the library's pretrained weights
stem=${TEACHER_STEM:-standard}                  # one for all teachers, or one per teacher
ensemble=${ENSEMBLE:-}                          # how the answers of several teachers are combined; empty: their mean
weights=${ENSEMBLE_WEIGHTS:-}                   # one per teacher; empty: equal

epochs=${EPOCHS:-300}
batch_size=${BATCH_SIZE:-100}
accumulation=${ACCUMULATION:-1}
input_size=${INPUT_SIZE:-224}
mean=${MEAN:-}                                  # one number per channel; empty: the program's default
std=${STD:-}
ipc=${IPC:-}                                    # images of each class; empty: all
workers=${WORKERS:-4}
seed=${SEED:-0}
loss_type=${LOSS_TYPE:-kl}
ce_weight=${CE_WEIGHT:-0.1}                     # used by the losses mse_gt, mae_gt and gift
temperature=${TEMPERATURE:-20}                  # used by the losses kl, dist and softce
mix_type=${MIX_TYPE:-cutmix}
rate=${LR:-0.001}                               # of AdamW
weight_decay=${WEIGHT_DECAY:-0.01}
schedule=${SCHEDULE:-smoothed}

nproc=${NPROC:-1}
# shellcheck disable=SC2086  # teachers and numbers are words
set -- "$here/train_KD_parallel.py" \
    --model "$model" \
    --train-dir "$train_dir" \
    --val-dir "$val_dir" \
    --output-dir "$output_dir" \
    --teacher-model $teacher \
    ${checkpoint:+--teacher-checkpoint $checkpoint} \
    --teacher-stem $stem \
    ${ensemble:+--ensemble "$ensemble"} \
    ${weights:+--ensemble-weights $weights} \
    --epochs "$epochs" \
    --batch-size "$batch_size" \
    --gradient-accumulation-steps "$accumulation" \
    --input-size "$input_size" \
    ${mean:+--mean $mean} \
    ${std:+--std $std} \
    ${ipc:+--ipc $ipc} \
    -j "$workers" \
    --seed "$seed" \
    --loss-type "$loss_type" \
    --ce-weight "$ce_weight" \
    -T "$temperature" \
    --mix-type "$mix_type" \
    --adamw-lr "$rate" \
    --adamw-weight-decay "$weight_decay" \
    --schedule "$schedule" \
    --wandb-mode "$wandb_mode" \
    --wandb-project "$wandb_project" \
    "$@"
[ "$nproc" -eq 1 ] || set -- -m torch.distributed.run --standalone --nproc_per_node "$nproc" "$@"
exec "${PYTHON:-python3}" "$@"
