#!/bin/sh
# Refuses settings that are no whole numbers of at least 1, before a recipe computes with them.
#
#   sh scripts/whole_numbers.sh "IPC=$IPC" "EPOCHS=$EPOCHS"
set -eu
for setting in "$@"; do
    case ${setting#*=} in
        '' | *[!0-9]* | 0*)
            echo "error: $setting is no whole number of at least 1; give one, such as ${setting%%=*}=10" >&2
            exit 2
            ;;
    esac
done
