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

wandb_mode=${WANDB_MODE:-disabled}              # the W&B switch: disabled, online, offline or auto
wandb_project=${WANDB_PROJECT:-dataset-distillation}

model=${MODEL:-convnet3}
train_dir=${TRAIN_DIR:-data/distilled}          # distilled images
val_dir=${VAL_DIR:-data/val}                    # real images for validation
output_dir=${OUTPUT_DIR:-save/$model}

epochs=${EPOCHS:-301}
batch_size=${BATCH_SIZE:-256}
accumulation=${ACCUMULATION:-1}
input_size=${INPUT_SIZE:-32}
mean=${MEAN:-}                                  # one number per channel; empty: the program's default
std=${STD:-}
workers=${WORKERS:-4}
seed=${SEED:-0}
loss_type=${LOSS_TYPE:-ce}
rate=${LR:-0.01}
momentum=${MOMENTUM:-0.9}
weight_decay=${WEIGHT_DECAY:-5e-4}              # on all parameters
milestones=${MILESTONES:-152}                   # epochs, or shares of all such as 2/3 5/6
gamma=${GAMMA:-0.1}
augment=${AUGMENT:-none}                        # none, dsa, imagenet-hard or rrc

nproc=${NPROC:-1}
# shellcheck disable=SC2086  # numbers are words
set -- "$here/train_KD_parallel.py" \
    --model "$model" \
    --train-dir "$train_dir" \
    --val-dir "$val_dir" \
    --output-dir "$output_dir" \
    --epochs "$epochs" \
    --batch-size "$batch_size" \
    --gradient-accumulation-steps "$accumulation" \
    --input-size "$input_size" \
    ${mean:+--mean $mean} \
    ${std:+--std $std} \
    -j "$workers" \
    --seed "$seed" \
    --loss-type "$loss_type" \
    --sgd \
    -lr "$rate" \
    --momentum "$momentum" \
    --weight-decay "$weight_decay" \
    --decay-all \
    --schedule step \
    --milestones $milestones \
    --gamma "$gamma" \
    --augment "$augment" \
    --wandb-mode "$wandb_mode" \
    --wandb-project "$wandb_project" \
    "$@"
[ "$nproc" -eq 1 ] || set -- -m torch.distributed.run --standalone --nproc_per_node "$nproc" "$@"
exec "${PYTHON:-python3}" "$@"
