#!/bin/sh
# Many runs on one machine: students x seeds x label sets, or a plan; one process per GPU at a time.
#
#   MODELS="resnet18 resnet50" SEEDS="0 1 2" LABELS="data/labels_a data/labels_b" GPUS="0 1 2 3" \
#       TRAIN_DIR=… VAL_DIR=… sh runs.sh [flags of train_FKD_parallel.py]
#
# Every other setting is that of train.sh. A run that fails is named and does not stop the others; the same
# command again skips what is finished, resumes what was stopped, and repeats what failed. A word in GPUS
# that is there twice takes two runs at once. Results in RUNS_DIR/LABELS/MODEL-seedSEED, with its output and its
# command beside it: a finished run of another command is refused, not taken for this one.
#
#   PLAN=plan.txt RUNS_DIR=… GPUS=… sh runs.sh [flags]
#
# A plan has one run a line: its name, a tab, its command. The command is read by sh, with OUTPUT_DIR set to
# RUNS_DIR/NAME, and --no-progress, --resume or --overwrite, and the flags are added to it (see evidence.sh).
# After another tab a line may have seeds: these are the runs NAME-seedSEED, where NAME ends in the model's name.
#
# Where there are more runs than GPUs, seeds of one line train side by side in one process, so that small batches
# fill the GPU and views are replayed once; each run has the figures that it has alone. At most SIDE_BY_SIDE do (8); where
# they do not fit into memory together, they are run one after the other.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
runs_dir=${RUNS_DIR:-save/runs}
tab=$(printf '\t')

quoted() {  # quoted TEXT: one word of sh
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

is_finished() {  # is_finished NAME: say so where it is
    [ -f "$runs_dir/$1/summary.json" ] || return 1
    if [ -f "$runs_dir/$1.command" ]; then
        echo "finished before: $1"
    else
        echo "finished before: $1 (by an earlier release, which did not note the command)"
    fi
}

described() {  # described [flags]: $command with its flags, as it is noted beside a run
    printf '%s\n' "$command" "$@"
}

is_of_another_command() {  # is_of_another_command NAME [flags]: say so where a finished run was made by another one
    name=$1
    shift
    [ -f "$runs_dir/$name/summary.json" ] && [ -f "$runs_dir/$name.command" ] || return 1
    [ "$(cat "$runs_dir/$name.command")" != "$(described "$@")" ] || return 1
    echo "error: $runs_dir/$name is finished, but was made with other settings or data ($name.command beside it has" \
        "them); use those, give another RUNS_DIR, or delete that folder to run it anew" >&2
}

train() {  # train OUTPUT LOG [flags]: run $command
    export CUDA_VISIBLE_DEVICES="$gpu" OUTPUT_DIR="$runs_dir/$1"
    log=$runs_dir/$2
    mkdir -p "$OUTPUT_DIR" "$(dirname "$log")"
    shift 2
    eval "$command \"\$@\"" >"$log" 2>&1
}

failed() {  # failed NAME
    echo "FAILED: $1 ($log: $(grep -m 1 '^error: ' "$log"))"
    return 1
}

one_run() {  # one_run NAME "SEED"-or-nothing [flags]
    name=$1 seed=$2 again=--overwrite
    shift 2
    [ ! -f "$runs_dir/$name/checkpoint.pth.tar" ] || again=--resume
    mkdir -p "$(dirname "$runs_dir/$name")"
    described "$@" >"$runs_dir/$name.command"
    # shellcheck disable=SC2086  # two words or none
    if train "$name" "$name.log" ${seed:+--seed $seed} --no-progress "$again" "$@"; then
        echo "done: $name"
    else
        failed "$name"
    fi
}

several() {  # several NAME "SEED SEED …" [flags]: the runs NAME-seedSEED, side by side
    model=$1 seeds=$2 bad=0 again=--overwrite
    shift 2
    for seed in $seeds; do
        [ ! -f "$runs_dir/$model-seed$seed/checkpoint.pth.tar" ] || again=--resume
    done
    mkdir -p "$(dirname "$runs_dir/$model")"
    for seed in $seeds; do
        described "$@" >"$runs_dir/$model-seed$seed.command"
    done
    output=$(dirname "$model") log=$model-seeds$(echo "$seeds" | tr ' ' -).log
    # shellcheck disable=SC2086  # one seed a word
    train "$output" "$log" --seeds $seeds --no-progress "$again" "$@" || bad=1
    if [ $bad = 1 ] && grep -q 'out of memory' "$log"; then
        bad=0
        for seed in $seeds; do
            one_run "$model-seed$seed" "$seed" "$@" || bad=1
        done
        return $bad
    fi
    for seed in $seeds; do
        if [ $bad = 0 ] || [ -f "$runs_dir/$model-seed$seed/summary.json" ]; then
            echo "done: $model-seed$seed"
        else
            failed "$model-seed$seed" || :
        fi
    done
    return $bad
}

read_line() {  # read_line NUMBER: $name, $command, and $rest, which has seeds after another tab or equals $command
    line=$(sed -n "${1}p" "$PLAN")
    name=${line%%"$tab"*} rest=${line#*"$tab"}
    command=${rest%%"$tab"*}
}

refuse_others() {  # refuse_others NUMBER [flags]: end where a finished run of a line was made by another command
    read_line "$1"
    shift
    if [ "$rest" = "$command" ]; then
        ! is_of_another_command "$name" "$@" || exit 2
    else
        line=$name
        for seed in ${rest#*"$tab"}; do
            ! is_of_another_command "$line-seed$seed" "$@" || exit 2
        done
    fi
}

one_line() {  # one_line NUMBER [flags]: what is left of a line of the plan
    read_line "$1"
    left=''
    shift
    if [ "$rest" = "$command" ]; then
        ! is_finished "$name" || return 0
    else
        for seed in ${rest#*"$tab"}; do
            is_finished "$name-seed$seed" || left="$left $seed"
        done
        left=${left# }
        [ -n "$left" ] || return 0
    fi
    slot=0 gpu=
    for gpu in $GPUS; do  # there are as many slots as runs at a time, so one is free
        slot=$((slot + 1))
        mkdir "$SLOTS/$slot" 2>/dev/null && break
    done
    trap 'rmdir "$SLOTS/$slot"' EXIT
    case $left in
        *' '*) several "$name" "$left" "$@" ;;
        *) one_run "$name${left:+-seed$left}" "$left" "$@" ;;
    esac
}

if [ "${1-}" = --one ]; then
    shift
    one_line "$@"
    exit
fi

GPUS=${GPUS:-0}
SLOTS=$(mktemp -d)
trap 'rm -rf "$SLOTS"' EXIT
if [ -z "${PLAN-}" ]; then
    PLAN=$SLOTS/given settings=''
    for setting in TRAIN_DIR VAL_DIR EPOCHS BATCH_SIZE ACCUMULATION INPUT_SIZE LOSS_TYPE CE_WEIGHT TEMPERATURE MIX_TYPE \
        SCHEDULE NPROC; do  # those of train.sh that change a figure, so that the command has them
        eval "value=\${$setting-}"
        [ -z "$value" ] || settings="$settings$setting=$(quoted "$value") "
    done
    for labels in ${LABELS:-${FKD_PATH:-data/labels}}; do
        for model in ${MODELS:-resnet18}; do
            printf '%s\t%s\t%s\n' "$(basename "$labels")/$model" \
                "${settings}MODEL=$(quoted "$model") FKD_PATH=$(quoted "$labels") sh $(quoted "$here/train.sh")" \
                "${SEEDS:-0}"
        done
    done >"$PLAN"
fi
twice=$(awk -F '\t' '$1 in command && command[$1] != $2 && !said++ { print $1 } { command[$1] = $2 }' "$PLAN")
[ -z "$twice" ] || {
    echo "error: two different runs are named $twice; give folders with different last names in LABELS, or other names" \
        "in the plan" >&2
    exit 2
}
number=0
while [ "$number" -lt "$(awk 'END { print NR }' "$PLAN")" ]; do
    number=$((number + 1))
    refuse_others "$number" "$@"
done
jobs=$(echo "$GPUS" | wc -w)
[ "${NPROC:-1}" -eq 1 ] || SIDE_BY_SIDE=1  # a student that several processes share stands alone
awk -F '\t' -v jobs="$jobs" -v most="${SIDE_BY_SIDE:-8}" '
    { lines[NR] = $0; runs += NF > 2 ? split($3, seeds, " ") : 1 }
    END {
        size = int((runs + jobs - 1) / jobs)  # seeds that train side by side
        if (size > most) size = most
        for (n = 1; n <= NR; n++) {
            if (split(lines[n], part, "\t") < 3) { print lines[n]; continue }
            many = split(part[3], seeds, " ")
            for (first = 1; first <= many; first += size) {
                text = seeds[first]
                for (i = first + 1; i < first + size && i <= many; i++) text = text " " seeds[i]
                print part[1] "\t" part[2] "\t" text
            }
        }
    }' "$PLAN" >"$SLOTS/plan"
PLAN=$SLOTS/plan
export GPUS SLOTS PLAN
awk '{ print NR }' "$PLAN" | xargs -P "$jobs" -I '{}' sh "$0" --one '{}' "$@"
