#!/bin/sh
# GIFT (Shang et al., ICLR 2025), the cosine loss on refined labels: here ResNet-18 on RDED's images of ImageNet-1K at
# 10 images per class.
#
# Published: see the tables of the paper; no figure is quoted here.
# Recipe: eval_syn_data.py, validate/ and utils/transforms.py of github.com/LINs-lab/GIFT (38db552): 300 epochs, batch
# 100, AdamW 1e-3 with weight decay 1e-4 on all parameters, the rate times 0.2 at 2/3 and 5/6 of the epochs. A live
# teacher answers the augmented views; the loss is 1 - cos(output, t/‖t‖ + 0.1 h/‖h‖), t its logits and h the class with
# 0.9 and the others with 0.1 in all. Views: a quarter of the image or the whole one (FACTOR_CROP=2), then DSA. Four
# evaluations, each after a quarter of the epochs; the best is reported, as mean and deviation over three runs (--seeds 0
# 1 2).
# * Other sets than ImageNet-1K: EPOCHS=1000. FACTOR_CROP=1 for them and for the images of SRe2L and G-VBSM.
# * BATCH_SIZE: 10 for up to 10 images in all, 50 for up to 500, 100 for up to 20000, else 200.
# * Students ViT-B/16 and Swin-V2-T: LR=1e-4. conv3, conv4 … of the source are convnet3_bn, convnet4_bn …; conv4 on
#   ImageNet-1K takes INPUT_SIZE=64 and --val-resize 73. resnet18_modified is resnet18 with --stem small.
# * Its other losses: LOSS_TYPE=cosine; softce with TEMPERATURE=1; kl; mse_gt (CE_WEIGHT=0 without cross-entropy).
# * DATM's images have no teacher: leave TEACHER_CHECKPOINT empty, and a data.pt with soft labels is trained on these.
#   The source takes softce with instance norm (convnet3) and ZCA there; its gift loss needs classes.
# Data: data.pt (images in [0, 1] and their classes) or class folders; a teacher with the student's architecture, for
# ImageNet-1K torchvision's. MEAN and STD for CIFAR.
# Different here: the class of an image gives h, as in the code; the README of the source weighs t/‖t‖ by 0.9.
# Not verified: any figure of the paper with this recipe.
#
# Settings as in train_live.sh, from the environment or as trailing flags:
#
#   TEACHER_CHECKPOINT=… TRAIN_DIR=… VAL_DIR=… sh scripts/recipes/gift.sh [flags]
set -eu
OUTPUT_DIR=${OUTPUT_DIR:-save/gift}
LOSS_TYPE=${LOSS_TYPE:-gift}
MIX_TYPE=${MIX_TYPE:-None}
WEIGHT_DECAY=${WEIGHT_DECAY:-1e-4}
SCHEDULE=${SCHEDULE:-step}
FACTOR_CROP=${FACTOR_CROP:-2}
EPOCHS=${EPOCHS:-300}
sh "$(dirname "$0")/../whole_numbers.sh" "EPOCHS=$EPOCHS"
quarter=$(((EPOCHS + 3) / 4))
export OUTPUT_DIR EPOCHS LOSS_TYPE MIX_TYPE WEIGHT_DECAY SCHEDULE
[ "$SCHEDULE" != step ] || set -- --milestones 2/3 5/6 --gamma 0.2 "$@"
exec sh "$(dirname "$0")/../../train_live.sh" \
    --decay-all --augment dsa --dsa-mode gift --factor-crop "$FACTOR_CROP" \
    --eval-from $((quarter - 1)) --eval-every "$quarter" "$@"
