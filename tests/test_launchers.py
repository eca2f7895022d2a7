"""The launchers in POSIX sh, and scripts/runs.py: settings, trailing arguments, many runs, signals."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest
from helpers import ROOT, run, wait_for

import train_FKD_parallel
from scripts.runs import Processes, Runs, Stopped, duration
from utils.config import FKDConfig

PRISM = ["train.sh", "train_FKD_10_r18.sh", "train_FKD_10_r50.sh", "train_FKD_10_r101.sh"]


def recipes_that_call(launcher):
    """Return the recipes that end in a call of this launcher, directly or by way of another recipe."""
    found = [launcher]
    scripts = {f"scripts/recipes/{path.name}": path.read_text() for path in (ROOT / "scripts" / "recipes").iterdir()}
    for name in found:
        call = f'exec sh "$(dirname "$0")/{os.path.relpath(name, "scripts/recipes")}"'
        found += [recipe for recipe, text in sorted(scripts.items()) if call in text]
    return found[1:]


PLAIN_LAUNCHERS = ["train_plain.sh", *recipes_that_call("train_plain.sh")]
LIVE_LAUNCHERS = ["train_live.sh", *recipes_that_call("train_live.sh")]
LAUNCHERS = PRISM + recipes_that_call("train.sh")


def values(words):
    """Return flags with their values; a flag without value has None."""
    words = words[1:]
    pairs = zip(words, [*words[1:], "-"], strict=True)
    return {word: None if value.startswith("-") else value for word, value in pairs if word.startswith("-")}


@pytest.mark.parametrize("launcher", LAUNCHERS + PLAIN_LAUNCHERS + LIVE_LAUNCHERS)
def test_syntax(launcher):
    """`sh -n` accepts every script."""
    subprocess.run(["sh", "-n", str(ROOT / launcher)], check=True)


@pytest.mark.parametrize(("launcher", "model"), zip(PRISM[1:], ["resnet18", "resnet50", "resnet101"], strict=True))
def test_the_recipe_is_parsed(launcher, model, launch):
    """The defaults are right, and the main script's own parser accepts them."""
    words = launch(launcher)
    assert words[0] == str(ROOT / "train_FKD_parallel.py")
    flags = values(words)
    expected = {
        **{"--model": model, "--batch-size": "50", "--gradient-accumulation-steps": "2", "--schedule": "cos"},
        **{
            "--loss-type": "mse_gt",
            "--ce-weight": "0.1",
            "--workers": "4",
            "--temperature": "20",
            "--mix-type": "cutmix",
        },
        **{"--epochs": "300", "--wandb-mode": "disabled"},
    }
    assert {flag: flags.get(flag, "missing") for flag in expected} == expected
    args = FKDConfig.parse(words[1:])
    assert (args.schedule, args.temperature, args.workers, args.sgd) == ("cos", 20.0, 4, False)


@pytest.mark.parametrize("launcher", PLAIN_LAUNCHERS)
def test_the_environment_overrides_every_plain_setting(launcher, launch):
    """Values may contain spaces; means, deviations and milestones may be several numbers."""
    settings = {
        **{"MODEL": "--model=resnet34", "TRAIN_DIR": "--train-dir=/a b/train", "VAL_DIR": "--val-dir=/val"},
        **{"OUTPUT_DIR": "--output-dir=/out put", "EPOCHS": "--epochs=9", "BATCH_SIZE": "--batch-size=8"},
        **{
            "ACCUMULATION": "--gradient-accumulation-steps=4",
            "INPUT_SIZE": "--input-size=64",
            "WORKERS": "--workers=0",
        },
        **{
            "SEED": "--seed=3",
            "LOSS_TYPE": "--loss-type=kl",
            "LR": "--learning-rate=0.5",
            "MOMENTUM": "--momentum=0.8",
        },
        **{"WEIGHT_DECAY": "--weight-decay=1e-4", "MILESTONES": "--milestones=7", "GAMMA": "--gamma=0.3"},
        **{"AUGMENT": "--augment=rrc", "WANDB_MODE": "--wandb-mode=offline", "WANDB_PROJECT": "--wandb-project=mine"},
    }
    words = launch(
        launcher, **{name: setting.split("=")[1] for name, setting in settings.items()}, MEAN="1 2 3", STD="4 5 6"
    )
    expected = dict(setting.split("=") for setting in settings.values())
    flags = values(words)
    assert {flag: flags.get(flag, "missing") for flag in expected} == expected
    assert [words[words.index(flag) + 1 :][:3] for flag in ("--mean", "--std")] == [["1", "2", "3"], ["4", "5", "6"]]


@pytest.mark.parametrize("launcher", LIVE_LAUNCHERS)
def test_the_environment_overrides_every_setting_of_live_teachers(launcher, launch):
    """Values may contain spaces; teachers, their files, means and deviations may be several words."""
    settings = {
        **{"MODEL": "--model=resnet34", "TRAIN_DIR": "--train-dir=/a b/train", "VAL_DIR": "--val-dir=/val"},
        **{"OUTPUT_DIR": "--output-dir=/out put", "EPOCHS": "--epochs=20", "BATCH_SIZE": "--batch-size=8"},
        **{
            "ACCUMULATION": "--gradient-accumulation-steps=4",
            "INPUT_SIZE": "--input-size=64",
            "WORKERS": "--workers=0",
        },
        **{"IPC": "--ipc=5", "SEED": "--seed=3", "LOSS_TYPE": "--loss-type=mae_gt", "CE_WEIGHT": "--ce-weight=0.2"},
        **{"TEMPERATURE": "--temperature=4", "MIX_TYPE": "--mix-type=mixup", "LR": "--adamw-lr=0.5"},
        **{"WEIGHT_DECAY": "--adamw-weight-decay=1e-4", "SCHEDULE": "--schedule=linear"},
        **{"WANDB_MODE": "--wandb-mode=offline", "WANDB_PROJECT": "--wandb-project=mine"},
    }
    words = launch(
        launcher,
        **{name: setting.split("=")[1] for name, setting in settings.items()},
        **{"MEAN": "1 2 3", "STD": "4 5 6", "TEACHER": "resnet18 alexnet", "TEACHER_CHECKPOINT": "a.pth b.pth"},
        **{"TEACHER_STEM": "small standard", "ENSEMBLE_WEIGHTS": "1 2", "ENSEMBLE": "mean"},
    )
    committee = {"--teacher-stem": ["small", "standard"], "--ensemble-weights": ["1", "2"], "--ensemble": ["mean"]}
    assert {flag: words[words.index(flag) + 1 :][: len(given)] for flag, given in committee.items()} == committee
    expected = dict(setting.split("=") for setting in settings.values())
    flags = values(words)
    assert {flag: flags.get(flag, "missing") for flag in expected} == expected
    assert [words[words.index(flag) + 1 :][:3] for flag in ("--mean", "--std")] == [["1", "2", "3"], ["4", "5", "6"]]
    teachers = [words[words.index(flag) + 1 :][:2] for flag in ("--teacher-model", "--teacher-checkpoint")]
    assert teachers == [["resnet18", "alexnet"], ["a.pth", "b.pth"]]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_environment_overrides_every_setting(launcher, launch):
    """Values may contain spaces."""
    settings = {
        **{"MODEL": "--model=resnet34", "TRAIN_DIR": "--train-dir=/a b/train", "VAL_DIR": "--val-dir=/val"},
        **{"FKD_PATH": "--fkd-path=/labels", "OUTPUT_DIR": "--output-dir=/out put", "EPOCHS": "--epochs=7"},
        **{"BATCH_SIZE": "--batch-size=8", "ACCUMULATION": "--gradient-accumulation-steps=4"},
        **{
            "INPUT_SIZE": "--input-size=32",
            "WORKERS": "--workers=0",
            "SEED": "--seed=3",
            "LOSS_TYPE": "--loss-type=kl",
        },
        **{"CE_WEIGHT": "--ce-weight=0.2", "TEMPERATURE": "--temperature=4", "MIX_TYPE": "--mix-type=mixup"},
        **{"WANDB_MODE": "--wandb-mode=offline", "WANDB_PROJECT": "--wandb-project=mine"},
    }
    expected = dict(setting.split("=") for setting in settings.values())
    flags = values(launch(launcher, **{name: setting.split("=")[1] for name, setting in settings.items()}))
    own = {"scripts/recipes/edc.sh": "linear-smoothed"}
    own |= {f"scripts/recipes/{name}.sh": "smoothed" for name in ("hald", "cvdd", "fadrm")}
    schedule = {"--schedule": own.get(launcher, "cos")}
    assert {flag: flags.get(flag, "missing") for flag in expected | schedule} == expected | schedule


def test_several_processes(launch):
    """NPROC starts PyTorch's launcher, followed by the script and its flags."""
    alone, words = (
        launch("train_FKD_10_r18.sh", "--epochs", "5"),
        launch("train_FKD_10_r18.sh", "--epochs", "5", NPROC="4"),
    )
    assert words[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    assert words[5:] == alone
    assert launch("train.sh", NPROC="1") == launch("train.sh")


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of train.sh with a .venv whose Python prints `venv`; the folder bin has one that prints `other`."""
    for name in ("train.sh", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder, word in ((".venv/bin", "venv"), ("bin", "other")):
        (tmp_path / folder).mkdir(parents=True)
        for program in ("python", "python3"):
            (tmp_path / folder / program).write_text(f"#!/bin/sh\necho {word}\n")
            (tmp_path / folder / program).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "used"),
    [
        ({}, "venv"),
        ({"VIRTUAL_ENV": "/env"}, "other"),
        ({"CONDA_PREFIX": "/c"}, "other"),
        ({"PYTHON": "python3"}, "other"),
    ],
    ids=str,
)
def test_launchers_use_the_environment_of_make_setup(environment, used, checkout):
    """Its use is said; an active environment and PYTHON are preferred."""
    settings = {"PATH": f"{checkout}/bin:{os.environ['PATH']}"} | environment
    done = subprocess.run(["sh", checkout / "train.sh"], capture_output=True, text=True, env=settings, cwd="/")
    said = f"using {checkout}/.venv/bin/python: no environment is active; set PYTHON to use another\n"
    assert (done.stdout, done.stderr, done.returncode) == (f"{used}\n", said if used == "venv" else "", 0)


def test_a_python_that_does_not_exist(tmp_path):
    """One sentence, exit code 2."""
    settings = os.environ | {"PYTHON": "no-such-python"}
    done = subprocess.run(["sh", ROOT / "train.sh"], capture_output=True, text=True, env=settings, cwd=tmp_path)
    said = "error: there is no program no-such-python; set PYTHON to a Python of at least 3.10\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (
            [],
            {},
            "--train-dir data/distilled does not .*; --train-dir comes from the variable TRAIN_DIR, which is not set",
        ),
        (
            [],
            {"TRAIN_DIR": "nowhere"},
            "--train-dir nowhere does not exist; .*; --train-dir comes from the variable TRAIN_DIR",
        ),
        (["--train-dir", "nowhere"], {}, "--train-dir nowhere does not exist; [^;]*"),
        ([], {"EPOCHS": "abc"}, "argument --epochs: 'abc' is not .*; --epochs comes from the variable EPOCHS"),
        (["--epohcs", "3"], {}, r"unrecognized arguments: --epohcs, 3 \(did you mean --epochs\?\); see --help"),
        ([], {"WORKERS": "abc"}, "argument -j/--workers: .*; --workers comes from the variable WORKERS"),
    ],
    ids=["not set", "wrong", "a flag", "number", "suggestion", "two spellings"],
)
def test_errors_name_the_variable_of_a_launcher(words, environment, message, launch, monkeypatch, tmp_path):
    """The launcher exports which variable sets which flag, and the program's errors name the variable."""
    stub = tmp_path / "flags"
    stub.write_text('#!/bin/sh\necho "$LAUNCHER_FLAGS"; printf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    flags, *argv = launch("train.sh", *words, **environment, PYTHON=str(stub))
    monkeypatch.chdir(tmp_path)
    for name, value in (environment | {"LAUNCHER_FLAGS": flags}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", argv)
    result = run(train_FKD_parallel, *argv[1:])
    assert result.code == 2
    assert re.fullmatch(f"error: {message}\n", result.err), result.err


MANY_RUNS = """#!/bin/sh
# stands in for Python: notes its GPU and arguments, and leaves a summary.json of each student
echo "$CUDA_VISIBLE_DEVICES $*" >>"$NOTES"
seeds=
while [ $# -gt 0 ]; do
    flag=$1; shift
    case $flag in
        --output-dir) output=$1 ;;
        --model) model=$1 ;;
        --seed|--seeds) seeds=; while [ "${1#-}" = "$1" ]; do seeds="$seeds $1"; shift; done ;;
    esac
done
case $seeds in *" "*" "*) side=yes ;; esac
[ -z "${side-}" ] || [ -z "${SMALL-}" ] || { echo "torch.cuda.OutOfMemoryError: CUDA out of memory." >&2; exit 1; }
code=0
for seed in $seeds; do
    folder=$output${side:+/$model-seed$seed}
    case $folder in *$FAILS) code=2; echo "error: it is broken" >&2; continue ;; esac
    mkdir -p "$folder"
    echo {} >"$folder/summary.json"
done
exit $code
"""


class ManyRuns:
    """2 students x 2 seeds x 2 label sets with a stand-in for Python."""

    def __init__(self, folder):
        self.folder, self.notes, stub = folder, folder / "notes", folder / "python"
        stub.write_text(MANY_RUNS)
        stub.chmod(0o755)
        self.settings = {"PATH": os.environ["PATH"], "PYTHON": str(stub), "RUNS_DIR": str(folder / "runs")}
        self.settings |= {"MODELS": "resnet18 resnet50", "SEEDS": "0 1", "LABELS": "l/a l/b", "NOTES": str(self.notes)}
        for name in ("l/a", "l/b", "data/distilled", "data/val", "it's a", "it's b", "other/a", "x", "y"):
            (folder / name).mkdir(parents=True)

    def __call__(self, fails="nothing", flags=("--epochs", "5"), **environment):
        self.notes.write_text("")
        settings = self.settings | {"FAILS": fails} | environment
        command = [sys.executable, str(ROOT / "scripts" / "runs.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=self.folder)
        return done, self.notes.read_text().splitlines()


@pytest.fixture
def many_runs(tmp_path):
    return ManyRuns(tmp_path)


@pytest.mark.parametrize(
    ("gpus", "processes"), [("0 1 2 3 4 5 6 7", 8), ("4 6", 4), ("4 4 6 6", 4), ("0 1 2 3 4 5 7", 4)]
)
def test_every_combination_runs_once(gpus, processes, many_runs):
    """Runs share GPUs; a failure is named and stops no other run; a second call runs what is left."""
    done, lines = many_runs("b/resnet50-seed0", GPUS=gpus)
    assert done.returncode != 0
    assert "FAILED: b/resnet50-seed0" in done.stdout
    assert "error: it is broken" in done.stdout
    names = {f"{labels}/{model}-seed{seed}" for labels in "ab" for model in ("resnet18", "resnet50") for seed in "01"}
    finished = {line.removeprefix("done: ") for line in done.stdout.splitlines() if line.startswith("done: ")}
    assert finished == names - {"b/resnet50-seed0"}
    assert {line.split()[0] for line in lines} <= set(gpus.split())
    assert len(lines) == processes
    assert all(line.endswith("--epochs 5") for line in lines)
    again, lines = many_runs(GPUS=gpus)
    assert again.returncode == 0
    assert (again.stdout.count("finished before: "), again.stdout.count("done: ")) == (7, 1)
    assert len(lines) == 1
    assert "--seed 0 --no-progress --overwrite --epochs 5" in lines[0]


def test_seeds_side_by_side(many_runs):
    """Seeds share a process if GPUs are scarce, at most SIDE_BY_SIDE; all resume if one has a checkpoint."""
    checkpoint = many_runs.folder / "runs" / "a" / "resnet18-seed3" / "checkpoint.pth.tar"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    settings = {"MODELS": "resnet18", "SEEDS": "0 1 2 3 4", "LABELS": "l/a", "GPUS": "0 1"}
    done, lines = many_runs(**settings)
    assert done.returncode == 0
    flags = sorted(line.partition(" --seeds ")[2] for line in lines)
    assert flags == ["0 1 2 --no-progress --overwrite --epochs 5", "3 4 --no-progress --resume --epochs 5"]
    _, lines = many_runs(**settings, RUNS_DIR=str(many_runs.folder / "others"), SIDE_BY_SIDE="1")
    assert [line.count("--seeds") for line in lines] == [0] * 5
    _, lines = many_runs(**settings, RUNS_DIR=str(many_runs.folder / "shared"), NPROC="2")
    assert [line.count("--seeds") for line in lines] == [0] * 5


def test_seeds_that_do_not_fit_run_one_by_one(many_runs):
    """Seeds that exceed the memory together run one after the other."""
    done, lines = many_runs(GPUS="0", SMALL="yes")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("done: ") == 8
    assert sum(" --seeds " in line for line in lines) == 4
    assert len(lines) == 12


@pytest.mark.parametrize(
    "changed",
    [{"flags": ("--epochs", "6")}, {"flags": ()}, {"EPOCHS": "7"}, {"VAL_DIR": "it's b"}, {"LABELS": "other/a l/b"}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_finished_run_of_another_command_is_not_taken_for_this_one(changed, many_runs):
    """It is refused before training; the same command skips it, also if flags differ that change no figure."""
    settings = {"GPUS": "0 1", "VAL_DIR": "it's a", "MODELS": "resnet18"}
    assert many_runs(**settings)[0].returncode == 0
    done, lines = many_runs(**settings | changed)
    assert (done.returncode, lines) == (2, [])
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        f"error: {many_runs.folder}/runs/a/resnet18-seed0 is finished, but was made with other"
    )
    again, lines = many_runs(**settings | {"GPUS": "3", "WORKERS": "9", "SIDE_BY_SIDE": "1"})
    assert (again.returncode, again.stdout.count("finished before: "), lines) == (0, 4, [])


def test_runs_without_a_command_are_of_an_earlier_release(many_runs):
    """They are skipped, and the log says that their command is unknown."""
    folder = many_runs.folder / "runs" / "a" / "resnet18-seed0"
    folder.mkdir(parents=True)
    (folder / "summary.json").touch()
    done, _ = many_runs(GPUS="0")
    assert done.returncode == 0
    assert "finished before: a/resnet18-seed0 (by an earlier release, which did not note the command)" in done.stdout


def test_two_label_sets_of_one_name_are_refused(many_runs):
    """Their runs would have the same folders."""
    done, lines = many_runs(LABELS="one/a two/a", GPUS="0")
    assert (done.returncode, lines) == (2, [])
    assert "error: two different runs are named a/resnet18; give folders with different last names" in done.stderr


def test_a_plan_of_commands_runs(tmp_path):
    """Each line is a name and a command; failures are named, and a second call runs what is left with --resume."""
    plan, runs = tmp_path / "plan.txt", tmp_path / "the runs"
    write = (
        'test -z "$BROKEN" || { : >"$OUTPUT_DIR/checkpoint.pth.tar"; exit 2; }; echo "$@" >"$OUTPUT_DIR/summary.json"'
    )
    lines = [f"HL/it's a/one\tsh -c '{write}' sh 'a b'", f"SL/two\tBROKEN=$BREAK sh -c '{write}' sh"]
    plan.write_text("\n".join(lines) + "\n")

    def call(breaks):
        settings = {"PATH": os.environ["PATH"], "PLAN": str(plan), "RUNS_DIR": str(runs), "BREAK": breaks}
        command = [sys.executable, str(ROOT / "scripts" / "runs.py"), "--seed", "3"]
        return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=tmp_path)

    done = call("yes")
    assert done.returncode != 0
    assert ("done: HL/it's a/one" in done.stdout, "FAILED: SL/two" in done.stdout) == (True, True)
    assert (runs / "HL/it's a/one/summary.json").read_text() == "a b --no-progress --overwrite --seed 3\n"
    again = call("")
    assert again.stdout.splitlines() == [
        "runs: 1 of 2 finished, 1 left; 1 process at a time",
        "finished before: HL/it's a/one",
        f"started: SL/two (output in {runs}/SL/two.log)",
        "done: SL/two",
    ]
    assert (runs / "SL/two/summary.json").read_text() == "--no-progress --resume --seed 3\n"


def start_runs(folder, plan, **environment):
    """Start scripts/runs.py on a plan, in the background."""
    (folder / "plan.txt").write_text("".join(f"{name}\t{command}\n" for name, command in plan))
    settings = {"PATH": os.environ["PATH"], "PLAN": str(folder / "plan.txt"), "RUNS_DIR": str(folder / "runs")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "runs.py")],
        **{"env": settings | environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )


def wait_for_files(*paths):
    """Wait until these files exist."""
    assert wait_for(lambda: all(path.exists() for path in paths)), paths


# Notes what it was called with, then waits; a signal has it save its state, as a training script does.
RUN_UNTIL_SIGNAL = (
    'sh -c \'save() { echo $1 >>"$OUTPUT_DIR/checkpoint.pth.tar"; exit $2; }; '
    'trap "save INT 130" INT; trap "save TERM 143" TERM; trap "save USR1 138" USR1; '
    'echo "$@" >"$OUTPUT_DIR/started"; while :; do sleep 0.05; done\' sh'
)


@pytest.mark.parametrize(
    ("name", "code", "arrives"),
    [("INT", 130, "INT"), ("TERM", 143, "TERM"), ("USR1", 138, "USR1"), ("HUP", 129, "TERM")],
)
def test_a_signal_ends_all_runs_once_and_the_same_command_resumes_them(name, code, arrives, tmp_path):
    """What runs gets the signal and is waited for; what waits for a GPU is not started."""
    plan = [(run_name, RUN_UNTIL_SIGNAL) for run_name in ("a", "b", "waiting")]
    process = start_runs(tmp_path, plan, GPUS="0 1")
    wait_for_files(tmp_path / "runs/a/started", tmp_path / "runs/b/started")
    process.send_signal(getattr(signal, f"SIG{name}"))
    out, err = process.communicate(timeout=120)
    first, *started = out.splitlines()
    assert (process.returncode, first) == (code, "runs: 0 of 3 finished, 3 left; 2 processes at a time")
    assert sorted(started) == [f"started: {run} (output in {tmp_path}/runs/{run}.log)" for run in "ab"]
    assert err == "stopped: the runs were asked to save their state; the same command goes on with them\n"
    for run_name in "ab":
        assert (tmp_path / "runs" / run_name / "checkpoint.pth.tar").read_text() == f"{arrives}\n"
        assert "--overwrite" in (tmp_path / "runs" / run_name / "started").read_text()
        (tmp_path / "runs" / run_name / "started").unlink()
    assert not (tmp_path / "runs" / "waiting").exists()
    process = start_runs(tmp_path, plan, GPUS="0 1 2")
    wait_for_files(*(tmp_path / "runs" / run_name / "started" for run_name in ("a", "b", "waiting")))
    process.terminate()
    process.communicate(timeout=120)
    assert [
        (tmp_path / "runs" / run_name / "started").read_text().split()[-1] for run_name in ("a", "b", "waiting")
    ] == [*("--resume", "--resume", "--overwrite")]


def test_a_signal_that_arrives_while_a_process_is_started_reaches_it_once(monkeypatch, tmp_path):
    """A second SIGINT would end a training script before it saves its state."""
    start = subprocess.Popen

    def start_with_signal(*args, **options):
        process = start(*args, **options)
        wait_for_files(tmp_path / "started")
        os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_with_signal)
    note = f'trap "echo INT >>{tmp_path}/signals" INT; : >{tmp_path}/started'
    count = f"{note}; for i in 1 2 3 4 5 6; do sleep 0.2; done; exit 1"
    processes = Processes()
    with processes.handling_signals(), pytest.raises(Stopped):
        processes.run(["sh", "-c", count], os.environ)
    assert (tmp_path / "signals").read_text() == "INT\n"


def test_a_signal_counts_even_after_a_run_has_failed(tmp_path):
    """The exit code is that of the signal, because the same command can go on with the other run."""
    process = start_runs(tmp_path, [("broken", "false"), ("a", RUN_UNTIL_SIGNAL)], GPUS="0")
    wait_for_files(tmp_path / "runs/a/started")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "broken" in out + err


def test_a_run_that_finishes_in_spite_of_the_signal_is_done(tmp_path):
    """It was in its last step."""
    finish = "sh -c 'trap \"echo >$OUTPUT_DIR/summary.json; exit 0\" INT; : >$OUTPUT_DIR/started; sleep 150 & wait' sh"
    process = start_runs(tmp_path, [("a", finish)])
    wait_for_files(tmp_path / "runs/a/started")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    said = (
        f"runs: 0 of 1 finished, 1 left; 1 process at a time\nstarted: a (output in {tmp_path}/runs/a.log)\ndone: a\n"
    )
    assert (process.returncode, out, err) == (0, said, "")


def test_the_rest_is_estimated(monkeypatch, capsys, tmp_path):
    """Two runs took 1,200 s; a process has trained two of four runs for 400 s, and two GPUs share out what is left."""
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    runs = Runs(str(tmp_path), [], {}, Processes())
    runs.number, runs.left, runs.gpus = 7, set("abcde"), ["0", "1"]
    runs.say_rest(["e"])
    assert capsys.readouterr().out == ""  # nothing is known yet
    runs.trained, runs.seconds, runs.running = 2, 1200.0, {"a": (600.0, 2)}
    runs.say_rest(["e"])  # 2 x 600 - 400 s in the process, 2 x 600 s that wait, by two
    assert capsys.readouterr().out == "left: 4 of 7 runs, about 17 min, if they take as long as the 2 so far\n"
    runs.say_rest(["c", "d"])  # the running process alone takes 800 s
    assert capsys.readouterr().out == "left: 2 of 7 runs, about 13 min, if they take as long as the 2 so far\n"
    runs.say_rest(["a", "b"])
    assert capsys.readouterr().out == ""
    assert [duration(seconds) for seconds in (12.4, 89, 3540, 3600 * 26.5)] == ["12 s", "89 s", "59 min", "26 h 30 min"]


def test_a_resumed_run_is_no_measure(tmp_path):
    """It takes less time than a whole one; failed runs do not count either."""
    for name in ("resumed", "whole"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "resumed" / "checkpoint.pth.tar").touch()
    plan = [("resumed", "true"), ("failed", "false"), ("whole", "true"), ("last", "true")]
    out, _ = start_runs(tmp_path, plan).communicate(timeout=120)
    started = {name: f"started: {name} (output in {tmp_path}/runs/{name}.log)" for name, _ in plan}
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == [
        started["resumed"],
        "done: resumed",
        started["failed"],
        f"FAILED: failed ({tmp_path}/runs/failed.log)",
        started["whole"],
        "done: whole",
        "left: 1 of 4 runs",
        started["last"],
        "done: last",
    ]
    assert out.endswith(f"if they take as long as the 1 so far\n{started['last']}\ndone: last\n")


def test_gpus_are_shared_as_they_are_named(tmp_path):
    """At any time a GPU has as many runs as GPUS names it; runs are started in the order of the plan."""
    log = tmp_path / "log"
    command = f'sh -c \'echo "+ $CUDA_VISIBLE_DEVICES" >>{log}; sleep 0.3; echo "- $CUDA_VISIBLE_DEVICES" >>{log}\' sh'
    process = start_runs(tmp_path, [(f"run{number}", command) for number in range(7)], GPUS="4 4 6")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err, out.count("done: ")) == (0, "", 7)
    now, most = Counter(), Counter()
    for sign, gpu in map(str.split, log.read_text().splitlines()):
        now[gpu] += 1 if sign == "+" else -1
        most[gpu] = max(most[gpu], now[gpu])
    assert most == {"4": 2, "6": 1}


def test_the_exit_code_of_failed_runs(tmp_path):
    """That of earlier releases; the log is named if it has no line that begins with error:."""
    process = start_runs(
        tmp_path, [("a", "sh -c 'exit 7' sh"), ("b", "sh -c 'echo error: why; exit 2' sh"), ("c", "true")]
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (123, "")
    runs = tmp_path / "runs"
    assert out.splitlines() == [
        "runs: 0 of 3 finished, 3 left; 1 process at a time",
        f"started: a (output in {runs}/a.log)",
        f"FAILED: a ({runs}/a.log)",
        f"started: b (output in {runs}/b.log)",
        f"FAILED: b ({runs}/b.log: error: why)",
        f"started: c (output in {runs}/c.log)",
        "done: c",
    ]


def test_commands_beside_runs_are_those_of_earlier_releases(many_runs):
    """Otherwise their finished runs would be refused."""
    many_runs(GPUS="0", VAL_DIR="it's a", MODELS="resnet18", LABELS="l/a", NPROC="1")
    command = f"VAL_DIR='it'\\''s a' NPROC='1' MODEL='resnet18' FKD_PATH='l/a' sh '{ROOT}/train.sh'\n--epochs\n5\n"
    assert (many_runs.folder / "runs" / "a" / "resnet18-seed1.command").read_text() == command


def test_each_label_set_may_have_its_own_images(many_runs):
    """Image folders and label folders are paired in order; a folder with a blank in its name is one folder."""
    settings = {"GPUS": "0", "MODELS": "resnet18", "SEEDS": "0"}
    (many_runs.folder / "own images").mkdir()
    for images, expected in (("x y", ["'x'", "'y'"]), ("own images", ["'own images'"] * 2)):
        done, _ = many_runs(**settings, TRAIN_DIR=images, RUNS_DIR=images)
        assert done.returncode == 0
        commands = [(many_runs.folder / images / name / "resnet18-seed0.command").read_text() for name in "ab"]
        assert [command.split(" MODEL=")[0] for command in commands] == [f"TRAIN_DIR={folder}" for folder in expected]


def test_patterns_of_folders_are_expanded(many_runs):
    """As the shell did it."""
    for name in ("b", "a"):
        (many_runs.folder / "l" / name).mkdir(exist_ok=True)
    done, _ = many_runs(GPUS="0", LABELS="l/*", MODELS="resnet18", SEEDS="0")
    runs = many_runs.folder / "runs"
    assert done.stdout.splitlines() == [
        "runs: 0 of 2 finished, 2 left; 1 process at a time",
        f"started: a/resnet18-seed0 (output in {runs}/a/resnet18-seed0.log)",
        "done: a/resnet18-seed0",
        "left: 1 of 2 runs, about 0 s, if they take as long as the 1 so far",
        f"started: b/resnet18-seed0 (output in {runs}/b/resnet18-seed0.log)",
        "done: b/resnet18-seed0",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"GPUS": " "}, "GPUS names no GPU; give numbers such as"),
        ({"SIDE_BY_SIDE": "0"}, "SIDE_BY_SIDE 0 is not a number from 1 on"),
        ({"SIDE_BY_SIDE": "many"}, "SIDE_BY_SIDE many is not a number from 1 on"),
        ({"NPROC": "-1"}, "NPROC -1 is not a number from 1 on"),
        ({"LABELS": "l/a l/c"}, "LABELS l/c does not exist; set LABELS to what exists"),
        ({"LABELS": ""}, "FKD_PATH data/labels does not exist (FKD_PATH is not set); set FKD_PATH to what exists"),
        ({"TRAIN_DIR": "nowhere"}, "TRAIN_DIR nowhere does not exist; set TRAIN_DIR to what exists"),
        ({"MODELS": " "}, "the plan has no run; give MODELS, SEEDS and LABELS, or lines in PLAN"),
        ({"RUNS_DIR": "/dev/null/runs"}, "RUNS_DIR /dev/null/runs cannot be made: Not a directory"),
        ({"TRAIN_DIR": "x y z"}, "TRAIN_DIR has 3 folders and LABELS 2; give one image folder for all labels, or one"),
        ({"PLAN": "missing.txt"}, "PLAN missing.txt cannot be read: No such file or directory"),
        ({"PLAN": "plan.txt"}, "PLAN plan.txt, line 2 has no tab; a line is a name, a tab and a command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_used(settings, message, many_runs):
    """One sentence, exit code 2, and nothing is run."""
    (many_runs.folder / "plan.txt").write_text("a\ttrue\nb true\n")
    done, lines = many_runs(**settings)
    assert (done.returncode, lines, done.stdout) == (2, [], "")
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("script", "setting"), [("runs.py", "SIDE_BY_SIDE"), ("evidence.py", "LABEL_EPOCHS")])
def test_help(script, setting, tmp_path):
    """It needs nothing but Python's standard library, and nothing is run."""
    command = [sys.executable, "-S", str(ROOT / "scripts" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert setting in done.stdout
    assert "python scripts/" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_trailing_arguments_come_last(launcher, launch):
    """argparse then prefers them; quoting survives."""
    words = launch(launcher, "--epochs", "9", "--output-dir", "a b", "--resume", HARD_EPOCHS="2")
    assert words[-5:] == ["--epochs", "9", "--output-dir", "a b", "--resume"]
    assert FKDConfig.parse(words[1:]).epochs == 9
