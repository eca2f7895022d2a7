#!/bin/sh
# CDA (Yin and Shen, "Dataset Distillation in Large Data Era", 2023), ResNet-18 on ImageNet-1K at 50 images per class.
#
# Published: 63.2 % top-1 at 50 images per class (abstract, which does not name the student).
# Recipe: its author's answer in issue 27 of github.com/VILA-Lab/SRe2L: 300 epochs, batch 128 at once, AdamW 1e-3 with
# weight decay 0.01, cosine, KL at T = 20, cutmix. CDA/README.md there relabels as SRe2L does.
# Data: CDA's images (cda_in1k_rn18_4k) and labels made as SRe2L's, 300 epochs in batches of 128.
# Not verified: that these settings gave the figure of the abstract, and that its student is ResNet-18.
#
# Settings as in train.sh, from the environment or as trailing flags:
#
#   TRAIN_DIR=… VAL_DIR=… FKD_PATH=… sh scripts/recipes/cda.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/cda}
BATCH_SIZE=${BATCH_SIZE:-128}
ACCUMULATION=${ACCUMULATION:-1}
LOSS_TYPE=${LOSS_TYPE:-kl}
TEMPERATURE=${TEMPERATURE:-20}
export OUTPUT_DIR BATCH_SIZE ACCUMULATION LOSS_TYPE TEMPERATURE
exec sh "$(dirname "$0")/../../train.sh" "$@"
