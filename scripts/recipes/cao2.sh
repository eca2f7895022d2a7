#!/bin/sh
# CaO2 (ICCV 2025): images of a diffusion model, evaluated as RDED evaluates its own.
#
# Published: see the tables of the paper; none is quoted here.
# Recipe: run.sh of github.com/hatchetProject/CaO2 (6381e50): RDED's evaluator with factor 2 for ImageNet-1K,
# ImageNet-100, ImageNette and ImageWoof, a ResNet-18 as teacher, students ResNet-18, 50 and 101, three repeats (--seeds
# 0 1 2). Its other evaluator, with hard labels, is that of idc.sh.
# Data: the images that its authors released.
# Different here: as in rded.sh.
# Not verified: any figure of the paper with this recipe.
#
# Settings as in rded.sh, from the environment or as trailing flags:
#
#   IPC=10 DATASET=woof TEACHER_CHECKPOINT=… TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/cao2.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/cao2}
export OUTPUT_DIR
exec sh "$(dirname "$0")/rded.sh" "$@"
