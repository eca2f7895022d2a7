"""The recipes in scripts/recipes: the settings of their authors' scripts, and a dry run of each on small data."""

import subprocess

import pytest
from helpers import LIGHT, ROOT, run, save_teacher
from label_folders import MAKERS

import train_FKD_parallel
import train_KD_parallel
from utils.config import FKDConfig, KDConfig

LPQLD = {"schedule": "cos", "batch_size": 128, "loss_type": "kl", "student_temperature": "calibrated"}
LPQLD |= {"temperature_schedule": "step", "temperature_step_size": 30, "temperature_gamma": 0.7, "reuse_labels": True}
IN_21K = {"batch_size": 32, "gradient_accumulation_steps": 1, "loss_type": "kl", "schedule": "cos", "adamw_lr": 0.002}
IN_21K |= {"mix_type": "None", "logit_smoothing": 0.2, "mean": (0,), "std": (1,), "val_resize": "squash"}
IN_21K |= {"reuse_labels": True, "input_size": 224}
RECIPES = {  # what its authors' scripts say
    "sre2l": {"batch_size": 1024, "gradient_accumulation_steps": 2, "loss_type": "kl", "schedule": "cos"},
    "cda": {"batch_size": 128, "gradient_accumulation_steps": 1, "loss_type": "kl", "schedule": "cos"},
    "gvbsm": {"batch_size": 1024, "gradient_accumulation_steps": 1, "loss_type": "mse_gt", "ce_weight": 0.1},
    "edc": {"batch_size": 100, "gradient_accumulation_steps": 1, "loss_type": "mse_gt", "ce_weight": 0.025}
    | {"schedule": "linear-smoothed", "smoothing": 2, "ema_decay": 0.99, "ema_buffers": "live", "eval_every": 30},
    "lpld": {"batch_size": 128, "loss_type": "kl", "temperature_schedule": "constant", "reuse_labels": True},
    "hald": {
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "loss_type": "kl",
        "schedule": "smoothed",
        "smoothing": 2,
    }
    | {"hard_epochs": 150, "hard_batch_size": 16, "label_smoothing": 0.8, "reuse_labels": True},
    **{f"lpqld_{times}": LPQLD for times in ("40x", "80x", "200x")},
    "wmdd": {"batch_size": 100, "gradient_accumulation_steps": 1, "loss_type": "kl", "schedule": "cos"},
    "lpld_21k": IN_21K | {"temperature_schedule": "constant", "student_temperature": "teacher", "num_classes": None},
    "lpqld_21k": LPQLD | IN_21K | {"num_classes": 10_450},
}
DSA = {"epochs": 1001, "milestones": (502,), "gamma": 0.1, "augment": "dsa", "batch_size": 256}
DSA |= {"dsa_mode": "single", "dsa_strategy": "color_crop_cutout_flip_scale_rotate"}
PLAIN_RECIPES = {  # recipes without a teacher
    "dc": {"epochs": 301, "milestones": (152,), "gamma": 0.1, "augment": "none", "batch_size": 256},
    **dict.fromkeys(["dsa", "dm", "mtt", "datm"], DSA),
    "idc": {"epochs": 2000, "milestones": (1333, 1666), "gamma": 0.2, "augment": "imagenet-hard", "batch_size": 64}
    | {"mix_type": "cutmix", "cutmix": 1, "min_scale_crops": 0.5, "hflip": 0.5, "eval_every": 20}
    | {"input_size": 224, "val_resize": 224, "step_momentum": "kept"},
}
LIVE_RECIPES: dict = {}  # recipes with live teachers
LEARNED = {"LR": "0.02"}  # the rate that MTT and DATM distill with the images


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_authors_settings(name, launch):
    """300 epochs of AdamW at T = 20 on cutmix views, and the recipe's own settings."""
    common = {"epochs": 300, "temperature": 20, "mix_type": "cutmix", "sgd": False, "adamw_lr": 0.001}
    common |= {"adamw_weight_decay": 0.01}
    args = FKDConfig.parse(launch(f"scripts/recipes/{name}.sh")[1:])
    expected = common | RECIPES[name]
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.output_dir == f"save/{name}"


def test_every_recipe_is_tested():
    assert {path.stem for path in (ROOT / "scripts" / "recipes").iterdir()} == set(RECIPES) | set(PLAIN_RECIPES) | set(
        LIVE_RECIPES
    )


@pytest.mark.parametrize("name", PLAIN_RECIPES)
def test_a_plain_recipe_has_its_authors_settings(name, launch):
    """SGD 0.01, momentum 0.9, weight decay 5e-4 on all parameters, cross-entropy, and the recipe's own settings."""
    learned = name in ("mtt", "datm")
    words = launch(f"scripts/recipes/{name}.sh", **(LEARNED if learned else {}))
    assert words[0] == str(ROOT / "train_KD_parallel.py")
    args = KDConfig.parse(words[1:])
    expected = {"sgd": True, "momentum": 0.9, "weight_decay": 5e-4, "decay_all": True, "loss_type": "ce"}
    expected |= {"schedule": "step", "learning_rate": 0.02 if learned else 0.01, "gradient_accumulation_steps": 1}
    expected |= PLAIN_RECIPES[name]
    if name != "idc":
        expected |= {"input_size": 32, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
        expected |= {"models": ("convnet3",), "precision": "fp32", "min_scale_crops": 1, "hflip": 0, "mix_type": None}
        expected |= {"step_momentum": "fresh"}
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.output_dir == f"save/{name}"


@pytest.mark.parametrize("name", ["mtt", "datm"])
def test_a_learned_rate_must_be_given(name):
    done = subprocess.run(["sh", str(ROOT / f"scripts/recipes/{name}.sh")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "give the learning rate that was distilled with the images" in done.stderr


@pytest.mark.parametrize("name", PLAIN_RECIPES)
def test_dry_run_of_a_plain_recipe(name, launch, tiny, tmp_path):
    """The recipe runs on tiny data, with smaller images."""
    where = {"TRAIN_DIR": str(tiny.train), "VAL_DIR": str(tiny.val), "OUTPUT_DIR": str(tmp_path / "run")}
    words = launch(f"scripts/recipes/{name}.sh", "--dry-run", **where, **LEARNED, INPUT_SIZE="32", MODEL=LIGHT)
    result = run(train_KD_parallel, *words[1:], "--device", "cpu", "-j", 0)
    assert result.code == 0, result.err
    assert "nothing was trained" in result.out
    assert "hard labels: no teacher answers" in result.out


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_of_a_recipe(name, launch, tiny, tmp_path):
    """The recipe runs on tiny data, with smaller batches and images."""
    reference = ROOT / "tests/data/reference_2026"
    folders = [tiny.train, tiny.val, tiny.labels]
    flags = ["--batch-size", 5, "--gradient-accumulation-steps", 1, "--input-size", 32, "--epochs", 3]
    flags += ["--hard-epochs", 1] if name == "hald" else []
    if name == "wmdd" or name.endswith("_21k"):
        MAKERS[name](tmp_path / "labels")
        folders[2] = tmp_path / "labels"
        flags += ["--num-classes", 3] if name == "lpqld_21k" else []
        flags += ["--epochs", 2] if name == "wmdd" else []
    elif name.startswith("lpqld"):
        folders = [reference / "images/train", reference / "images/val", reference / "lpqld_pq"]
        flags = ["--batch-size", 8]
    where = dict(zip(("TRAIN_DIR", "VAL_DIR", "FKD_PATH"), map(str, folders), strict=True))
    words = launch(
        f"scripts/recipes/{name}.sh", *map(str, flags), "--dry-run", **where, OUTPUT_DIR=str(tmp_path / "run")
    )
    result = run(train_FKD_parallel, *words[1:], "--device", "cpu", "--model", LIGHT, "-j", 0)
    assert result.code == 0, result.err
    assert "nothing was trained" in result.out
    assert not (tmp_path / "run" / "checkpoint.pth.tar").exists()


@pytest.mark.parametrize("name", LIVE_RECIPES)
def test_a_live_recipe_has_its_authors_settings(name, launch):
    """300 epochs of AdamW with KL at T = 20 on cutmix views, and the recipe's own settings."""
    words = launch(f"scripts/recipes/{name}.sh")
    assert words[0] == str(ROOT / "train_KD_parallel.py")
    args = KDConfig.parse(words[1:])
    expected = {"epochs": 300, "loss_type": "kl", "temperature": 20, "mix_type": "cutmix", "schedule": "smoothed"}
    expected |= {"sgd": False, "adamw_lr": 0.001, "adamw_weight_decay": 0.01, "gradient_accumulation_steps": 1}
    expected |= LIVE_RECIPES[name]
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.output_dir == f"save/{name}"


@pytest.mark.parametrize("name", LIVE_RECIPES)
def test_dry_run_of_a_live_recipe(name, launch, tiny, tmp_path):
    """The recipe runs on tiny data, with smaller images."""
    where = {"TRAIN_DIR": str(tiny.train), "VAL_DIR": str(tiny.val), "OUTPUT_DIR": str(tmp_path / "run")}
    teacher = {"TEACHER": LIGHT, "TEACHER_CHECKPOINT": str(save_teacher(tmp_path / "teacher.pth"))}
    words = launch(
        f"scripts/recipes/{name}.sh", "--dry-run", "--accept-labels", **where, **teacher, INPUT_SIZE="32", MODEL=LIGHT
    )
    result = run(train_KD_parallel, *words[1:], "--device", "cpu", "-j", 0)
    assert result.code == 0, result.err
    assert "nothing was trained" in result.out
