# shellcheck shell=sh
# What train.sh, train_plain.sh and train_live.sh have in common; the demo's scripts use the first part. A script sets
# `here` to this project's folder and then reads this file:
#
#   . "$here/scripts/launcher.sh"
#
# First part: PYTHON. If it is not set: the Python of .venv if that exists and no environment is active, else python3.
: "${here:?}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$here/.venv/bin/python" ]; then
        PYTHON=$here/.venv/bin/python
        echo "using $PYTHON: no environment is active; set PYTHON to use another" >&2
    fi
fi
command -v "$PYTHON" >/dev/null || {
    echo "error: there is no program $PYTHON; set PYTHON to a Python of at least 3.10" >&2
    exit 2
}

# Second part: a launcher is a table of settings, and a call of `launch`.
#
#   setting  VARIABLE DEFAULT --flag    VARIABLE is taken from the environment, or has this default if it is not set
#   settings VARIABLE DEFAULT --flag    the same for a value of several words; without a value the flag is left out
#   launch PROGRAM.py [flags]           run the program with the settings, then [flags]; in NPROC processes
LAUNCHER_FLAGS=                                 # --flag=VARIABLE for each setting, the last one first
several=' '                                     # the variables whose value may have several words

setting() {
    eval "$1=\${$1:-\$2}"
    LAUNCHER_FLAGS="$3=$1 $LAUNCHER_FLAGS"
}

settings() {
    setting "$@"
    several="$several$1 "
}

launch() {
    program=$here/$1
    shift
    for pair in $LAUNCHER_FLAGS; do
        flag=${pair%%=*} variable=${pair#*=}
        eval "value=\$$variable"
        # shellcheck disable=SC2086,SC2154  # words are separate; `value` is set by eval
        case $several in
            *" $variable "*) set -- ${value:+$flag $value} "$@" ;;
            *) set -- "$flag" "$value" "$@" ;;
        esac
    done
    set -- "$program" "$@"
    sh "$here/scripts/whole_numbers.sh" "NPROC=${NPROC:-1}"
    [ "${NPROC:-1}" -eq 1 ] || set -- -m torch.distributed.run --standalone --nproc_per_node "$NPROC" "$@"
    export LAUNCHER_FLAGS                       # the program's errors then name the variable beside the flag
    exec "$PYTHON" "$@"
}
