#!/bin/sh
# Is it the images or the labels? Students are trained on every image set in three regimes, and one report says
# what each of them is worth:
#
#   HL      hard labels alone (the folder's class), on ordinary random views
#   SL      stored soft labels: LABEL_EPOCHS epochs of views, answered once, visited again when they run out
#   SL+KD   the teacher answers live, on views that are never repeated
#
#   IMAGE_SETS="data/distilled" REAL_DIR=data/train VAL_DIR=data/val \
#       TEACHER=resnet18 TEACHER_CHECKPOINT=teacher.pth MODELS="resnet18 resnet50" SEEDS="0 1 2" GPUS="0 1" \
#       WORK=save/evidence sh evidence.sh [flags of both training scripts]
#
# The baseline is made here: WORK/images/random, drawn from REAL_DIR with RANDOM_SEED, as many images per class as
# the first image set has. Every set is labelled by the same teacher in the same way. The same command again goes
# on with what is left; what is finished is not run again. Other settings or other data than those of before are
# refused, not mixed with what WORK holds. docs/evidence.md says how to read the report.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

image_sets=${IMAGE_SETS:-data/distilled}        # folders; the first one is what the random set is drawn like
real_dir=${REAL_DIR:-data/train}                # real training images, to draw the random set from
val_dir=${VAL_DIR:-data/val}
teacher=${TEACHER:-resnet18}
teacher_checkpoint=${TEACHER_CHECKPOINT:-teacher.pth}
full_data=${FULL_DATA:-}                        # top-1 on all real images, hard labels: "71.3" or "resnet18=71.3 …"
work=${WORK:-save/evidence}

models=${MODELS:-resnet18}
seeds=${SEEDS:-0 1 2}
regimes=${REGIMES:-HL SL SL+KD}
epochs=${EPOCHS:-300}
label_epochs=${LABEL_EPOCHS:-$epochs}
batch_size=${BATCH_SIZE:-50}
accumulation=${ACCUMULATION:-2}
input_size=${INPUT_SIZE:-224}
workers=${WORKERS:-4}
loss_type=${LOSS_TYPE:-mse_gt}                  # of SL and SL+KD
ce_weight=${CE_WEIGHT:-0.1}
temperature=${TEMPERATURE:-20}
mix_type=${MIX_TYPE:-cutmix}                    # of SL and SL+KD; hard labels know no mixed views
views=${VIEWS:-}                                # flags that shape views: --min-scale-crops 0.25 --hflip 0 …
random_seed=${RANDOM_SEED:-0}
class_map=${CLASS_MAP:-}                        # lines REAL_FOLDER<tab>IMAGE_SET_FOLDER, where the names differ

quoted() {  # quoted TEXT: one word of sh
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

state_of() {  # state_of FOLDER: a number that changes with the names and sizes of its files
    (cd "$1" && find -L . -type f ! -name '.*' -exec wc -c {} +) | sed 's/^ *//' |
        grep -v ' total$' | LC_ALL=C sort | cksum | tr ' ' -
}

[ -d "$val_dir" ] || { echo "error: VAL_DIR $val_dir is not a folder; give the validation images" >&2; exit 2; }
for images in $image_sets; do
    for other in $image_sets "$work/images/random"; do
        [ "$images" = "$other" ] || [ "$(basename "$images")" != "$(basename "$other")" ] || {
            echo "error: IMAGE_SETS: $images and $other have the same last name, by which labels and runs are named;" \
                "link one of them under another name" >&2
            exit 2
        }
    done
done

mkdir -p "$work/images" "$work/labels" "$work/runs"
random=$work/images/random
[ -f "$random.txt" ] || rm -rf "$random"  # the list is written last
"$python" -m utils.report.random_images "$real_dir" --like "${image_sets%% *}" --seed "$random_seed" \
    --output "$random" --again ${class_map:+--class-map "$class_map"}
image_sets="$image_sets $random"

case $regimes in *SL\ * | *SL)
    for images in $image_sets; do
        # shellcheck disable=SC2086  # flags are words
        "$python" "$here/relabel_FKD.py" --data "$images" -a "$teacher" --checkpoint "$teacher_checkpoint" \
            -b "$batch_size" --epochs "$label_epochs" --input-size "$input_size" -j "$workers" --use-fp16 \
            --mix-type "$mix_type" $views --no-progress --fkd-path "$work/labels/$(basename "$images")"
    done ;;
esac

PYTHON=$python WORKERS=$workers  # in no command, since they change no figure
export PYTHON WORKERS
validated=$(state_of "$val_dir")
asked="$teacher $([ ! -f "$teacher_checkpoint" ] || cksum <"$teacher_checkpoint" | tr ' ' -)"
common="--val-dir $(quoted "$val_dir") --output-dir \"\$OUTPUT_DIR\" --epochs $epochs --batch-size $batch_size \
--gradient-accumulation-steps $accumulation --input-size $input_size -j \"\$WORKERS\" --cos"
soft="--loss-type $loss_type --ce-weight $ce_weight -T $temperature"
live="--teacher-model $teacher --teacher-checkpoint $(quoted "$teacher_checkpoint") --mix-type $mix_type --fkd-seed 43"
for regime in $regimes; do
    for images in $image_sets; do
        name=$(basename "$images")
        # what the folders and files hold, so that a finished run of others is not taken for this one
        data="images $(state_of "$images"), validation $validated"
        case $regime in
            HL) flags="train_KD_parallel.py --loss-type ce $views" ;;
            SL)
                flags="train_FKD_parallel.py $soft --fkd-path $(quoted "$work/labels/$name") --reuse-labels"
                data="$data, $label_epochs epochs of labels, $mix_type, $views, of $asked"
                ;;
            SL+KD)
                flags="train_KD_parallel.py $soft $live $views"
                data="$data, teacher $asked"
                ;;
            *) echo "error: REGIMES: $regime is none of HL, SL, SL+KD" >&2; exit 2 ;;
        esac
        for model in $models; do
            printf '%s\t%s\t%s\n' "$regime/$name/$model" "DATA=$(quoted "$data") \"\$PYTHON\" $(quoted "$here/")$flags \
--train-dir $(quoted "$images") --model $model $common" "$seeds"
        done
    done
done >"$work/plan.txt"

failed=0
PLAN=$work/plan.txt RUNS_DIR=$work/runs sh "$here/runs.sh" "$@" || failed=$?
# shellcheck disable=SC2086  # one figure a word
"$python" -m utils.report "$work/runs" --output "$work/report" ${full_data:+--full-data $full_data}
exit "$failed"
