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

wandb_mode=${WANDB_MODE:-disabled}              # the W&B switch: disabled, online, offline or auto
wandb_project=${WANDB_PROJECT:-dataset-distillation}

model=${MODEL:-resnet18}
train_dir=${TRAIN_DIR:-data/distilled}          # distilled images, one folder per class
val_dir=${VAL_DIR:-data/val}                    # real validation images, one folder per class
fkd_path=${FKD_PATH:-data/labels}               # FKD labels: epoch_0, epoch_1, …
output_dir=${OUTPUT_DIR:-save/$model}

epochs=${EPOCHS:-300}
batch_size=${BATCH_SIZE:-50}                    # that of the labels
accumulation=${ACCUMULATION:-2}
input_size=${INPUT_SIZE:-224}
workers=${WORKERS:-4}
seed=${SEED:-0}
loss_type=${LOSS_TYPE:-mse_gt}
ce_weight=${CE_WEIGHT:-0.1}
temperature=${TEMPERATURE:-20}                  # used by the losses kl, dist and softce
mix_type=${MIX_TYPE:-cutmix}
schedule=${SCHEDULE:-cos}                       # linear, linear-smoothed, cos, smoothed, cos2 or prism

[ "$schedule" = cos ] && schedule_flags=--cos || schedule_flags="--schedule=$schedule"

nproc=${NPROC:-1}
set -- "$here/train_FKD_parallel.py" \
    --model "$model" \
    --train-dir "$train_dir" \
    --val-dir "$val_dir" \
    --fkd-path "$fkd_path" \
    --output-dir "$output_dir" \
    --epochs "$epochs" \
    --batch-size "$batch_size" \
    --gradient-accumulation-steps "$accumulation" \
    --input-size "$input_size" \
    -j "$workers" \
    --seed "$seed" \
    "$schedule_flags" \
    --loss-type "$loss_type" \
    --ce-weight "$ce_weight" \
    -T "$temperature" \
    --mix-type "$mix_type" \
    --wandb-mode "$wandb_mode" \
    --wandb-project "$wandb_project" \
    "$@"
[ "$nproc" -eq 1 ] || set -- -m torch.distributed.run --standalone --nproc_per_node "$nproc" "$@"
exec "${PYTHON:-python3}" "$@"
