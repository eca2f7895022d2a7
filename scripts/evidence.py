"""Measure how much images and labels each contribute to a result: train students on image sets in three regimes.

    HL      hard labels only (the class of the image's folder), on ordinary random crops and flips
    SL      soft labels, stored for LABEL_EPOCHS epochs; longer training replays the same labels again
    SL+KD   soft labels that a live teacher computes during training, on new random views in every epoch

    IMAGE_SETS="data/distilled" REAL_DIR=data/train VAL_DIR=data/val \\
        TEACHER=resnet18 TEACHER_CHECKPOINT=teacher.pth MODELS="resnet18 resnet50" SEEDS="0 1 2" GPUS="0 1" \\
        WORK=save/evidence python scripts/evidence.py [flags of train_*_parallel.py]

The script also trains on a baseline of random real images. It draws them from REAL_DIR with the seed RANDOM_SEED, as
many per class as the first image set has, and puts links to them into WORK/images/random. One teacher labels all image
sets, with the same flags.

With NO_AUGMENT=yes, HL and SL+KD are trained on whole images as well, which the augmentation-robust score needs. With
SEARCH_RATES, all runs with hard labels or random images are trained once for each of these learning rates, and the
report has the best rate of each set, as DD-Ranking does: that takes as many times longer.

Repeat the command to resume: the script skips finished runs. It refuses to go on if WORK holds results of other
settings or data. docs/evidence.md explains the report, which is written to WORK/report. GPUS and SIDE_BY_SIDE have the
same meaning as in scripts/runs.py. The settings come from environment variables, which --help lists; flags of the
command line are passed on to the training scripts.

Exit codes: as those of scripts/runs.py. If drawing, labelling or the report fails, the code is 2 if it printed an error
that a setting can remedy, else 123.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import runs
from runs import ROOT, SOME_FAILED, Processes, RunsError, folders_of, last_name, model_folder, quoted, refuse_missing

REGIMES = ("HL", "SL", "SL+KD")
# Which setting each flag of the commands comes from: the programs' errors name it (`with_variables` in errors.py)
LAUNCHER_FLAGS = (
    "--data=IMAGE_SETS --train-dir=IMAGE_SETS --like=IMAGE_SETS --val-dir=VAL_DIR --class-map=CLASS_MAP "
    "--classes=CLASSES --arch=TEACHER --teacher-model=TEACHER --checkpoint=TEACHER_CHECKPOINT "
    "--teacher-checkpoint=TEACHER_CHECKPOINT --model=MODELS --seeds=SEEDS --seed=RANDOM_SEED --epochs=EPOCHS "
    "--batch-size=BATCH_SIZE --gradient-accumulation-steps=ACCUMULATION --input-size=INPUT_SIZE --workers=WORKERS "
    "--loss-type=LOSS_TYPE --ce-weight=CE_WEIGHT --temperature=TEMPERATURE --mix-type=MIX_TYPE "
    "--full-data=FULL_DATA --adamw-lr=RATE --learning-rate=RATE"
)


def setting(default: str, description: str = "") -> str:
    """Return a field of `Settings` with its default and its description for --help."""
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class Settings:
    """Settings of the script; each is read from the environment variable with the same name in capitals.

    Numbers are stored as text, because the script only passes them on as flags of other commands.
    """

    image_sets: str = setting("data/distilled", "image sets; the random set is drawn like the first one")
    real_dir: str = setting("data/train", "real training images, from which the random set is drawn")
    val_dir: str = setting("data/val", "validation images")
    teacher: str = setting("resnet18")
    teacher_checkpoint: str = setting("teacher.pth")
    full_data: str = setting("", 'top-1 on all real images with hard labels: "71.3", or "resnet18=71.3 resnet50=76.1"')
    work: str = setting("save/evidence", "folder for everything that is made")
    models: str = setting("resnet18", "students")
    seeds: str = setting("0 1 2")
    regimes: str = setting(" ".join(REGIMES))
    epochs: str = setting("300")
    label_epochs: str = setting("", "epochs of stored labels; EPOCHS unless given")
    batch_size: str = setting("50")
    accumulation: str = setting("2")
    input_size: str = setting("224")
    workers: str = setting("4")
    loss_type: str = setting("mse_gt", "of SL and SL+KD")
    ce_weight: str = setting("0.1", "of SL and SL+KD")
    temperature: str = setting("20", "of SL and SL+KD")
    mix_type: str = setting("cutmix", "of SL and SL+KD; views with hard labels are not mixed")
    views: str = setting("", "flags that shape views: --min-scale-crops 0.25 --hflip 0 …")
    random_seed: str = setting("0")
    no_augment: str = setting("no", "yes: HL and SL+KD also on whole images without augmentation, for ARS")
    search_rates: str = setting("", "learning rates to try in HL and with random images: 0.001 0.005 0.01 0.05 0.1")
    rate: str = setting("", "learning rate of the runs that try none; that of train_*_parallel.py unless given")
    class_map: str = setting("", "file with lines REAL_FOLDER<tab>IMAGE_SET_FOLDER, if their names differ")
    classes: str = setting("", "classes to use: a file with one folder name a line, or a name such as imagenette")

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings from environment variables; an empty variable counts as not set."""
        names = {one.name: one.name.upper() for one in fields(cls)}
        return cls(**{name: environment[variable] for name, variable in names.items() if environment.get(variable)})

    @classmethod
    def described(cls) -> str:
        """Return the part of --help with one line per setting: name, default and description."""
        rows = [(f"{one.name.upper()}={one.default}", one.metadata["description"]) for one in fields(cls)]
        return "\n".join(f"    {default:<32}{description}".rstrip() for default, description in rows)

    @property
    def random_set(self) -> str:
        return f"{self.work}/images/random"

    def labels_of(self, images: str) -> str:
        """Return the path of the folder for the soft labels of the image folder `images`."""
        return f"{self.work}/labels/{last_name(images)}"


def check(settings: Settings, environment: Mapping[str, str]) -> None:
    """Raise RunsError if a setting cannot be used."""
    for regime in settings.regimes.split():
        if regime not in REGIMES:
            raise RunsError(f"REGIMES: {regime} is none of {', '.join(REGIMES)}")
    if settings.no_augment not in ("no", "yes"):
        raise RunsError(f"NO_AUGMENT {settings.no_augment} is neither yes nor no")
    if settings.no_augment == "yes" and settings.regimes.split() == ["SL"]:
        raise RunsError("NO_AUGMENT=yes has no effect on SL, whose views are stored; add HL or SL+KD to REGIMES")
    for rate in (*settings.search_rates.split(), *settings.rate.split()):
        if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", rate):
            raise RunsError(
                f"{rate} in SEARCH_RATES or RATE is no learning rate; give numbers such as 0.001, parted by spaces"
            )
    image_sets = folders_of(settings.image_sets)
    if not image_sets:
        raise RunsError("IMAGE_SETS names no folder; give the distilled images")
    for images in image_sets:
        for other in (*image_sets, settings.random_set):
            if images != other and last_name(images) == last_name(other):
                raise RunsError(
                    f"IMAGE_SETS: {images} and {other} have the same last name, by which labels and runs are named; "
                    "link one of them under another name"
                )
    folders = {"IMAGE_SETS": settings.image_sets, "REAL_DIR": settings.real_dir, "VAL_DIR": settings.val_dir}
    if set(settings.regimes.split()) & {"SL", "SL+KD"}:
        folders["TEACHER_CHECKPOINT"] = settings.teacher_checkpoint
    refuse_missing(environment, folders)


def cksum(data: bytes) -> str:
    """Return the output of the program cksum for `data`, as text "CRC-length".

    The format must not change: commands contain these checksums, and the commands of finished runs are compared as
    text.
    """
    done = subprocess.run(["cksum"], input=data, capture_output=True, check=True)
    return done.stdout.decode().strip().replace(" ", "-")


def state_of(folder: str) -> str:
    """Return a checksum of the paths and sizes of all files in a folder and its subfolders, except hidden files.

    If `folder` is a file, such as an archive or a tensor, the checksum covers the file's name and size.
    """
    top = os.fsencode(folder)
    if os.path.isfile(top):
        return cksum(b"%d %b\n" % (os.path.getsize(top), os.path.basename(top)))
    lines = []
    for place, _, names in os.walk(top, followlinks=True):
        for path in (os.path.join(place, name) for name in names if not name.startswith(b".")):
            if os.path.isfile(path):
                lines.append(b"%d ./%b" % (os.path.getsize(path), os.path.relpath(path, top)))
    return cksum(b"".join(line + b"\n" for line in sorted(lines)))


def draw_random_set(settings: Settings, python: str) -> list[str]:
    """Return the command that draws the random baseline images, or checks them if they were drawn before."""
    like = folders_of(settings.image_sets)[0]
    command = [python, "-m", "utils.report.random_images", settings.real_dir, "--like", like]
    command += ["--seed", settings.random_seed, "--output", settings.random_set, "--again"]
    command += ["--class-map", settings.class_map] if settings.class_map else []
    return command + (["--classes", settings.classes] if settings.classes else [])


def relabel(settings: Settings, images: str, python: str) -> list[str]:
    """Return the command that writes soft labels for the image folder `images`, or continues an interrupted attempt."""
    command = [python, f"{ROOT}/relabel_FKD.py", "--data", images]
    command += ["-a", settings.teacher, "--checkpoint", settings.teacher_checkpoint]
    command += ["-b", settings.batch_size, "--epochs", settings.label_epochs or settings.epochs]
    command += ["--input-size", settings.input_size, "-j", settings.workers, "--use-fp16"]
    command += ["--mix-type", settings.mix_type, *settings.views.split()]
    command += ["--classes", settings.classes] if settings.classes else []
    return [*command, "--no-progress", "--fkd-path", settings.labels_of(images)]


def words_of(settings: Settings, regime: str, images: str, whole: bool) -> str:
    """Return the training script of a regime and the flags that only this regime needs.

    Args:
        settings: settings of the script.
        regime: HL, SL or SL+KD.
        images: image folder; SL needs its labels.
        whole: whether the students see whole images without augmentation; only HL and SL+KD can.
    """
    s = settings
    views = "--augment none" if whole else s.views
    if regime == "HL":
        return f"train_KD_parallel.py --loss-type ce {views}"
    soft = f"--loss-type {s.loss_type} --ce-weight {s.ce_weight} -T {s.temperature}"
    if regime == "SL":
        return f"train_FKD_parallel.py {soft} --fkd-path {quoted(s.labels_of(images))} --reuse-labels"
    live = f"--teacher-model {s.teacher} --teacher-checkpoint {quoted(s.teacher_checkpoint)}"
    live += "" if whole else f" --mix-type {s.mix_type}"
    return f"train_KD_parallel.py {soft} {live} --fkd-seed 43 {views}"


def make_plan(settings: Settings, image_sets: Sequence[str]) -> str:
    """Return the plan for scripts/runs.py: one line per regime (HL, SL, SL+KD), image set, learning rate and model.

    Each line lists all seeds. Its command begins with DATA=…, which contains checksums of the run's data. If the data
    change, the command changes too, and scripts/runs.py refuses to mix new runs with finished ones. PYTHON and WORKERS
    do not affect results, so commands contain only the names of these variables; their values may change.
    """
    s = settings
    common = (
        f'--val-dir {quoted(s.val_dir)} --output-dir "$OUTPUT_DIR" --epochs {s.epochs} --batch-size {s.batch_size} '
        f"--gradient-accumulation-steps {s.accumulation} --input-size {s.input_size} "
        '-j "$WORKERS" --cos'
    )
    common += f" --classes {quoted(s.classes)}" if s.classes else ""
    states = {folder: state_of(folder) for folder in (*image_sets, s.val_dir)}
    checkpoint = Path(s.teacher_checkpoint)
    teacher = f"{s.teacher} {cksum(checkpoint.read_bytes()) if checkpoint.is_file() else ''}"
    labels = {  # the part of DATA=… on the labels of each regime
        "HL": "",
        "SL": f", {s.label_epochs or s.epochs} epochs of labels, {s.mix_type}, {s.views}, of {teacher}",
        "SL+KD": f", teacher {teacher}",
    }
    classes = f", classes {cksum(Path(s.classes).read_bytes())}" if os.path.isfile(s.classes) else ""
    variants = [(regime, False) for regime in s.regimes.split()]
    if s.no_augment == "yes":
        variants += [(regime, True) for regime in s.regimes.split() if regime != "SL"]
    lines = []
    for (regime, whole), images in itertools.product(variants, image_sets):
        data = f"images {states[images]}, validation {states[s.val_dir]}{classes}{labels[regime]}"
        words = words_of(s, regime, images, whole)
        searched = s.search_rates and (regime == "HL" or images == s.random_set)
        for rate, model in itertools.product(s.search_rates.split() if searched else [s.rate], s.models.split()):
            folders = [*(["no-augment"] if whole else []), *([f"lr{rate}"] if searched else []), model_folder(model)]
            # both flags, because the flags of the command line choose the optimizer
            rates = f" --adamw-lr {rate} --learning-rate {rate}" if rate else ""
            command = f'DATA={quoted(data)} "$PYTHON" {quoted(f"{ROOT}/")}{words}'
            command += f" --train-dir {quoted(images)} --model {model} {common}{rates}"
            lines.append(f"{'/'.join([regime, last_name(images), *folders])}\t{command}\t{s.seeds}\n")
    return "".join(lines)


def main(flags: Sequence[str], environment: Mapping[str, str], processes: Processes) -> int:
    """Draw the baseline, label all image sets, train all students and write the report; return the exit code.

    Raises:
        RunsError: a setting cannot be used.
        Stopped: a signal stopped the script.
    """
    settings = Settings.read(environment)
    if settings.search_rates and (given := {"--adamw-lr", "--learning-rate", "-lr"} & set(flags)):
        raise RunsError(f"{min(given)} would replace all of SEARCH_RATES; give RATE, for the runs that search none")
    check(settings, environment)
    python = environment.get("PYTHON") or sys.executable
    modules = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    environment = {**environment, "PYTHON": python, "WORKERS": settings.workers, "PYTHONPATH": modules}
    environment["LAUNCHER_FLAGS"] = LAUNCHER_FLAGS
    work = Path(settings.work)
    for name in ("images", "labels", "runs"):
        (work / name).mkdir(parents=True, exist_ok=True)
    # The list of the random images is written last: if it is missing, drawing the images was interrupted.
    if not Path(f"{settings.random_set}.txt").is_file():
        shutil.rmtree(settings.random_set, ignore_errors=True)

    image_sets = [*folders_of(settings.image_sets), settings.random_set]
    if code := processes.run(draw_random_set(settings, python), environment):
        return failed(code)
    plan = work / "plan.txt"
    plan.write_text(make_plan(settings, image_sets), errors="surrogateescape")
    if "SL" in settings.regimes.split():
        names = {name for line in runs.read_plan(str(plan)) for name in line.runs}
        finished = sum((work / "runs" / name / "summary.json").is_file() for name in names)
        print(f"soft labels of {len(image_sets)} image sets, then {len(names)} runs ({finished} finished)", flush=True)
        for images in image_sets:
            if code := processes.run(relabel(settings, images, python), environment):
                return failed(code)

    try:
        code = runs.main(flags, {**environment, "PLAN": str(plan), "RUNS_DIR": f"{settings.work}/runs"}, processes)
    except RunsError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    report = [python, "-m", "utils.report", f"{settings.work}/runs", "--output", f"{settings.work}/report"]
    report += ["--full-data", *settings.full_data.split()] if settings.full_data else []
    report += ["--searched", "adamw_lr", "learning_rate"] if settings.search_rates else []
    # if all runs failed, the report fails too: their code says more
    return code or failed(processes.run(report, environment))


def failed(code: int) -> int:
    """Return the exit code of this script if a command of it ended with `code`: 0 and 2 are kept, others are 123."""
    return code if code in (0, 2) else SOME_FAILED


if __name__ == "__main__":
    sys.exit(runs.run_script(main, f"{__doc__}\nSettings and their defaults:\n\n{Settings.described()}"))
