"""The command line of every program: --help, --version and wrong flags, before PyTorch is imported and without it."""

import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT

from utils.config import (
    IMAGE_COMMANDS,
    LABEL_COMMANDS,
    FKDConfig,
    KDConfig,
    RandomImagesConfig,
    RelabelConfig,
    ReportConfig,
    own_fields,
)
from utils.system.errors import InputError

SLOW = {"torch", "torchvision", "timm", "numpy", "scipy", "matplotlib", "wandb", "PIL"}
TRAINING = ["--train-dir", "images", "--val-dir", "images"]
# program -> flags that its parser accepts
PROGRAMS = {
    "train_FKD_parallel.py": [*TRAINING, "--fkd-path", "labels"],
    "train_KD_parallel.py": TRAINING,
    "relabel_FKD.py": ["--data", "images", "--fkd-path", "labels"],
    "-m utils.labels": ["info", "labels"],
    "-m utils.images": ["info", "images"],
    "-m utils.report": ["runs", "--output", "report"],
    "-m utils.report.random_images": ["images", "--per-class", "1", "--output", "drawn"],
}

CONFIGS = [FKDConfig, KDConfig, RelabelConfig, *LABEL_COMMANDS.values(), *IMAGE_COMMANDS.values(), ReportConfig]
CONFIGS.append(RandomImagesConfig)


def call(program, *words, options=(), **environment):
    """Run a program as a command line does, from the top folder."""
    command = [sys.executable, *options, *program.split(), *words]
    settings = {name: value for name, value in os.environ.items() if name not in ("RANK", "COLUMNS")} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings, timeout=120)


def imported(errors):
    """Return the top-level packages in the lines that `python -X importtime` prints."""
    return {name.strip().split(".")[0] for name in re.findall(r"^import time:.*\|(.*)$", errors, flags=re.M)}


def without_times(errors):
    """Return the standard error of `python -X importtime` without the lines about imports."""
    return "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("import time:"))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flag", ["--help", "--version", "--wrong-flag"])
def test_answers_come_before_slow_imports(program, flag):
    """PyTorch, torchvision, scipy and matplotlib take seconds to import."""
    words = [*(PROGRAMS[program] if flag == "--wrong-flag" else []), flag]
    done = call(program, *words, options=["-X", "importtime"])
    assert "argparse" in imported(done.stderr)
    assert not imported(done.stderr) & SLOW
    said = without_times(done.stderr)
    if flag == "--wrong-flag":
        assert done.returncode == 2
        assert re.fullmatch(r"error: unrecognized arguments: --wrong-flag.*see --help\n", said), said
    else:
        assert (done.returncode, said) == (0, "")
        assert done.stdout.startswith("usage: " if flag == "--help" else "validator of dataset distillation 20")


@pytest.mark.parametrize("script", ["scripts/runs.py", "scripts/evidence.py"])
def test_scripts_for_many_runs_answer_without_a_run(script):
    """They pass other flags on to the training scripts."""
    for flag, start in (("--help", "M"), ("--version", "validator of dataset distillation 20")):
        done = call(script, flag, options=["-X", "importtime"])
        assert (done.returncode, without_times(done.stderr)) == (0, "")
        assert done.stdout.startswith(start)
        assert not imported(done.stderr) & SLOW


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_package_is_named(program):
    """Without an environment's packages (-S), one sentence names the Python that lacks them, and the remedy."""
    done = call(program, *PROGRAMS[program], options=["-S"])
    assert done.returncode == 2
    lacks = "tqdm, scipy" if program == "-m utils.report" else "PyTorch, torchvision, numpy, safetensors, tqdm"
    pattern = (
        rf"error: {lacks} are not installed in the Python that runs this script, {re.escape(sys.executable)}; .*\n"
    )
    assert re.fullmatch(pattern, done.stderr), done.stderr
    assert ". .venv/bin/activate" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr


def test_only_one_of_several_processes_refuses_a_wrong_flag():
    """torchrun starts the others with another RANK."""
    assert call("train_FKD_parallel.py", "--wrong-flag", RANK="0").stderr.startswith("error: unrecognized")
    other = call("train_FKD_parallel.py", "--wrong-flag", RANK="1")
    assert (other.returncode, other.stderr) == (2, "")


def test_a_report_needs_no_pytorch():
    """Runs are compared without the packages that trained them, and sooner."""
    code = "import sys, utils.report.command; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & SLOW


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("columns", [80, 60, 120])
def test_help_follows_the_terminal(config, columns, monkeypatch):
    """No line is longer than the terminal is wide, except an example; no flag or file name is broken at a hyphen."""
    monkeypatch.setenv("COLUMNS", str(columns))
    before, examples, after = config.parser().format_help().partition("\nexamples:\n")
    assert max(map(len, before.splitlines())) <= max(columns, 80)
    assert max(map(len, (examples + after).splitlines())) <= 80
    assert not re.search(r"\w-$", before, flags=re.M)
    assert "default: None" not in before
    assert not re.search(r"\(default[^)]*\)\s*\((default|required)", before)
    for group in config.groups:
        assert f"\n{group.title}:\n" in before
    usage = " ".join(before.partition("\n\n")[0].split())
    for item in (item for group in config.groups for item in own_fields(group)):
        flag = item.metadata["flag"]
        spelling = flag.spellings(item.name)[0]
        assert (f" {spelling} " in usage) == (flag.required and spelling.startswith("-"))


@pytest.mark.parametrize("config", CONFIGS)
def test_examples_of_help_parse(config):
    """Each program has an example, and its flags are right."""
    commands = [line for line in config.examples.replace("\\\n", " ").splitlines() if line and line[0] != "#"]
    assert commands
    for command in commands:
        assert command.startswith(f"{config.program} ")
        config.parse(shlex.split(command)[len(config.program.split()) :])


@pytest.mark.parametrize("config", [FKDConfig, KDConfig, RelabelConfig, RandomImagesConfig])
def test_a_required_flag_is_missed(config):
    """The sentence names the flag and says what to give; a mistyped flag is named first."""
    words = ["images"] if config is RandomImagesConfig else []
    with pytest.raises(InputError, match=r"^--[a-z-]+ is missing; give .* see --help$"):
        config.parse(words)
    with pytest.raises(InputError, match="did you mean --version"):
        config.parse([*words, "--vesion"])


def test_the_page_of_flags_is_current():
    """docs/flags.md has a row for every flag, and each heading once, since links name headings."""
    text = (ROOT / "docs" / "flags.md").read_text()
    made = runpy.run_path(str(ROOT / "scripts" / "flags_page.py"))["page"](text)
    assert text == made, "docs/flags.md is not current; `make flags` (python scripts/flags_page.py) renews it"
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    assert len(set(headings)) == len(headings) > 30
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
    rows = set(re.findall(r"^\| `(-[^`]*)`", text, flags=re.M))
    assert {"--train-dir", "-T", "--teacher-model", "--bits", "--items", "--images", "--part", "--like"} <= rows


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python train_FKD_parallel.py --temperature-s", {"--temperature-schedule", "--temperature-step-size"}),
        ("python train_KD_parallel.py --augment ", {"rrc", "dsa", "none", "imagenet-hard"}),
        ("python relabel_FKD.py --prese", {"--preset"}),
        ("python -m utils.labels ", {"info", "pack", "unpack", "verify", "-h", "--help", "--version"}),
        ("python -m utils.labels pack a b --bits ", {"32", "16", "8", "4"}),
        ("python -m utils.images convert --pa", {"--part"}),
        ("python -m utils.report --ign", {"--ignore"}),
        ("python -m utils.report.random_images --per", {"--per-class"}),
    ],
)
def test_a_shell_completes_flags(line, words, tmp_path):
    """The answer comes before the slow imports, and the program does nothing else."""
    options = line.split()[1:]
    program = " ".join(options[:2]) if options[0] == "-m" else options[0]
    script = program if options[0] != "-m" else options[1].replace(".", "/")
    file = next(
        path for path in (ROOT / script, ROOT / f"{script}.py", ROOT / script / "__main__.py") if path.is_file()
    )
    assert "PYTHON_ARGCOMPLETE_OK" in file.read_text()[:1024]  # the completion of a shell looks for this word
    asked = {"_ARGCOMPLETE": str(len(program.split()) + 1), "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line}
    asked |= {"COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words")}
    done = call(program, options=["-X", "importtime"], **asked)
    assert {word.strip() for word in (tmp_path / "words").read_text().split("\n")} == words
    assert done.stdout == ""
    assert not imported(done.stderr) & SLOW
