#!/bin/sh
# Many runs on one machine: students x seeds x label sets, one run per GPU at a time.
#
#   MODELS="resnet18 resnet50" SEEDS="0 1 2" LABELS="data/labels_a data/labels_b" GPUS="0 1 2 3" \
#       TRAIN_DIR=… VAL_DIR=… sh runs.sh [flags of train_FKD_parallel.py]
#
# Every other setting is that of train.sh. A run that fails is named and does not stop the others; the same
# command again skips what is finished, resumes what was stopped, and repeats what failed. A word in GPUS
# that is there twice takes two runs at once. Results in RUNS_DIR/LABELS/MODEL-seedSEED, output beside it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
runs_dir=${RUNS_DIR:-save/runs}

one_run() {  # one_run "MODEL|SEED|LABELS" [flags]
    model=${1%%|*} rest=${1#*|}
    seed=${rest%%|*} labels=${rest#*|}
    shift
    name=$(basename "$labels")/$model-seed$seed
    if [ -f "$runs_dir/$name/summary.json" ]; then
        echo "finished before: $name"
        return 0
    fi
    slot=0 gpu=
    for gpu in $GPUS; do  # there are as many slots as runs at a time, so one is free
        slot=$((slot + 1))
        mkdir "$SLOTS/$slot" 2>/dev/null && break
    done
    trap 'rmdir "$SLOTS/$slot"' EXIT
    again=--overwrite
    [ ! -f "$runs_dir/$name/checkpoint.pth.tar" ] || again=--resume
    mkdir -p "$runs_dir/$name"
    if CUDA_VISIBLE_DEVICES=$gpu MODEL=$model SEED=$seed FKD_PATH=$labels OUTPUT_DIR=$runs_dir/$name \
        sh "$here/train.sh" --no-progress "$again" "$@" >"$runs_dir/$name.log" 2>&1; then
        echo "done: $name"
    else
        echo "FAILED: $name ($runs_dir/$name.log: $(grep -m 1 '^error: ' "$runs_dir/$name.log"))"
        return 1
    fi
}

if [ "${1-}" = --one ]; then
    shift
    one_run "$@"
    exit
fi

GPUS=${GPUS:-0}
SLOTS=$(mktemp -d)
export GPUS SLOTS
trap 'rm -rf "$SLOTS"' EXIT
for labels in ${LABELS:-${FKD_PATH:-data/labels}}; do
    for model in ${MODELS:-resnet18}; do
        for seed in ${SEEDS:-0}; do
            echo "$model|$seed|$labels"
        done
    done
done | xargs -P "$(echo "$GPUS" | wc -w)" -I '{}' sh "$0" --one '{}' "$@"
