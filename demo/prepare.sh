#!/bin/sh
# What demo/run.sh and demo/evidence.sh have in common: images, a teacher, and the stand-in for a distilled set.
#
#   sh demo/prepare.sh WORK
set -eu
cd "$(dirname "$0")/.."
here=$PWD
# shellcheck source=scripts/launcher.sh
. scripts/launcher.sh
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # the project need not be installed
export PYTHONPATH

echo "== images"
"$PYTHON" demo/prepare_data.py "$1"

echo "== teacher"
"$PYTHON" demo/train_teacher.py "$1"

echo "== stand-in for a distilled set"
"$PYTHON" demo/choose_images.py "$1"
