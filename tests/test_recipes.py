"""The recipes in scripts/recipes: the settings of their authors' scripts, and a dry run of each on small data."""

import os
import re
import subprocess

import pytest
import torch
from helpers import LIGHT, ROOT, make_labels, run, save_teacher
from label_folders import MAKERS

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel
from utils.config import FKDConfig, KDConfig
from utils.training.models import build_student

LPQLD = {"schedule": "cos", "batch_size": 128, "loss_type": "kl", "student_temperature": "calibrated"}
LPQLD |= {"temperature_schedule": "step", "temperature_step_size": 30, "temperature_gamma": 0.7, "reuse_labels": True}
BSSL = {"batch_size": 16, "gradient_accumulation_steps": 2, "loss_type": "kl", "schedule": "smoothed", "smoothing": 2}
IN_21K = {
    "label_order": "sampled",
    "batch_size": 32,
    "gradient_accumulation_steps": 1,
    "loss_type": "kl",
    "schedule": "cos",
    "adamw_lr": 0.002,
}
IN_21K |= {"mix_type": "None", "logit_smoothing": 0.2, "mean": (0,), "std": (1,), "val_resize": "squash"}
IN_21K |= {"reuse_labels": True, "input_size": 224}
RECIPES = {  # what its authors' scripts say
    "sre2l": {"batch_size": 1024, "gradient_accumulation_steps": 2, "loss_type": "kl", "schedule": "cos"},
    "cda": {"batch_size": 128, "gradient_accumulation_steps": 1, "loss_type": "kl", "schedule": "cos"},
    "gvbsm": {"batch_size": 1024, "gradient_accumulation_steps": 1, "loss_type": "mse_gt", "ce_weight": 0.1},
    "edc": {"batch_size": 100, "gradient_accumulation_steps": 1, "loss_type": "mse_gt", "ce_weight": 0.025}
    | {"schedule": "linear-smoothed", "smoothing": 2, "ema_decay": 0.99, "ema_buffers": "live", "eval_every": 30},
    "gvbsm_cifar10": {"epochs": 1000, "batch_size": 100, "gradient_accumulation_steps": 1, "input_size": 32}
    | {"loss_type": "mse_gt", "ce_weight": 0.15, "schedule": "cos", "adamw_weight_decay": 0, "stem": "small"}
    | {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
    "gvbsm_cifar100": {"epochs": 1000, "batch_size": 64, "gradient_accumulation_steps": 1, "input_size": 32}
    | {"loss_type": "mse_gt", "ce_weight": 0.15, "schedule": "cos", "models": ("convnet3",), "sgd": True}
    | {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "decay_all": False}
    | {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
    "gvbsm_tiny": {"epochs": 100, "batch_size": 100, "gradient_accumulation_steps": 2, "input_size": 64, "sgd": True}
    | {"loss_type": "mse_gt", "ce_weight": 0.1, "schedule": "cos", "learning_rate": 0.1, "momentum": 0.9}
    | {"weight_decay": 5e-4, "decay_all": False, "mean": None, "stem": "small"},
    "lpld": {"batch_size": 128, "loss_type": "kl", "temperature_schedule": "constant", "reuse_labels": True}
    | {"label_order": "sampled"},
    "lpld_tiny": {"epochs": 100, "batch_size": 64, "gradient_accumulation_steps": 1, "input_size": 64, "stem": "small"}
    | {"sgd": True, "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 1e-4, "decay_all": False}
    | {"schedule": "cos", "warmup_epochs": 5, "warmup_factor": 0.01, "loss_type": "kl", "loss_scale_t2": True}
    | {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262), "mix_type": "None"}
    | {"reuse_labels": True, "label_order": "sampled", "eval_every": 10, "ema_decay": None},
    "hald": {
        "batch_size": 16,
        "gradient_accumulation_steps": 1,
        "loss_type": "kl",
        "schedule": "smoothed",
        "smoothing": 2,
    }
    | {"hard_epochs": 150, "hard_batch_size": 16, "label_smoothing": 0.8, "reuse_labels": True},
    **{f"lpqld_{times}": LPQLD for times in ("40x", "80x", "200x")},
    **dict.fromkeys(["cvdd", "fadrm"], BSSL),
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
RDED = {"batch_size": 100, "ipc": 10, "shuffle_patches": 2, "min_scale_crops": 0.5, "max_scale_crops": 1, "val_ipc": 50}
RDED |= {"eval_from": 249, "eval_every": 10, "input_size": 224, "val_resize": 256, "auto_augment": None, "cutmix": 1}
RDED |= {
    "stem": "standard",
    "teacher_stem": ("standard",),
    "decay_all": False,
    "smoothing": 2,
    "mean": None,
    "hflip": 0.5,
}
LIVE_RECIPES: dict = {  # recipes with live teachers
    "rded": RDED,
    "cao2": RDED,
    "delt": RDED
    | {"shuffle_patches": 1, "min_scale_crops": 0.25, "eval_from": 0, "auto_augment": "rand-m6-n2-mstd1.0"},
    "d3hr": RDED
    | {"batch_size": 50, "shuffle_patches": 1, "min_scale_crops": 0.08, "val_ipc": None}
    | {"eval_from": 291, "eval_every": 1},
    "bps": RDED
    | {"batch_size": 128, "shuffle_patches": 1, "min_scale_crops": 0.2, "val_ipc": None, "epochs": 500}
    | {"eval_from": 479, "eval_every": 1, "decay_all": True, "loss_scale_t2": True},
}
SMALL = {"stem": "small", "teacher_stem": ("small",), "shuffle_patches": 1}
CIFAR = SMALL | {"input_size": 32, "val_resize": 32, "min_scale_crops": 1}
TINY = SMALL | {"input_size": 64, "val_resize": 72, "min_scale_crops": 1, "val_ipc": 50}
CONV = {"stem": "standard", "teacher_stem": ("standard",)}  # other students and teachers than ResNets
# recipe, its settings, and what follows from them
DERIVED = [
    ("rded", "IPC=1", {"batch_size": 20}),
    ("rded", "IPC=50", {"batch_size": 200}),
    ("rded", "IPC=1 DATASET=imagenet100", {"batch_size": 20}),
    ("rded", "IPC=1 DATASET=woof", {"batch_size": 10} | {"input_size": 224, "shuffle_patches": 2}),
    ("rded", "DATASET=nette", {"batch_size": 50, "val_ipc": 50}),
    ("rded", "IPC=50 DATASET=imagenet10", {"batch_size": 100}),
    ("rded", "IPC=3 DATASET=nette BATCH_SIZE=7", {"batch_size": 7}),
    ("rded", "IPC=4 DATASET=nette", {"batch_size": 10}),
    ("rded", "DATASET=tiny", TINY | {"batch_size": 100}),
    ("rded", "IPC=1 DATASET=tiny", TINY | {"batch_size": 100}),
    ("rded", "DATASET=cifar10", CIFAR | {"batch_size": 50, "val_ipc": 1000}),
    ("rded", "DATASET=cifar100 IPC=50", CIFAR | {"batch_size": 200, "val_ipc": 100}),
    ("rded", "DATASET=cifar100 MODEL=convnet3_bn", CIFAR | {"batch_size": 100, "adamw_lr": 0.001, "stem": "standard"}),
    (
        "rded",
        "DATASET=cifar100 MODEL=convnet3_bn TEACHER=convnet3_bn IPC=1",
        CIFAR | CONV | {"batch_size": 25, "adamw_lr": 0.002},
    ),
    ("rded", "DATASET=woof MODEL=convnet5_bn TEACHER=convnet5_bn", {"input_size": 128, "val_resize": 144}),
    ("rded", "DATASET=imagenet100 TEACHER=convnet6_bn", {"input_size": 128, "batch_size": 100}),
    ("rded", "MODEL=convnet4_bn", {"input_size": 64, "val_resize": 72, "shuffle_patches": 2, "min_scale_crops": 0.5}),
    ("rded", "MIX_TYPE=mixup", {"mix_type": "mixup", "temperature": 4, "mixup": 0.8}),
    ("rded", "EPOCHS=400", {"eval_from": 329}),
    ("rded", "EPOCHS=30", {"eval_from": 29}),
    ("rded", "EPOCHS=6", {"eval_from": 5}),
    *(("rded", f"MODEL={name}", {"adamw_lr": 0.001}) for name in ("resnet50", "resnet101", "convnet6_bn")),
    *(("rded", f"MODEL={name}", {"adamw_lr": 0.0001}) for name in ("alexnet", "vit_b_16", "swin_v2_t")),
    ("rded", "MODEL=vgg11", {"adamw_lr": 0.0005}),
    ("rded", "MODEL=efficientnet_b0", {"adamw_lr": 0.002}),
    ("rded", "MODEL=mobilenet_v2", {"adamw_lr": 0.0025}),
    ("cao2", "DATASET=woof IPC=50 MODEL=resnet101", {"batch_size": 100, "shuffle_patches": 2}),
    ("delt", "IPC=30", {"batch_size": 200}),
    ("delt", "IPC=20", {"batch_size": 100}),
    ("delt", "IPC=50 MODEL=resnet101", {"batch_size": 100}),
    ("delt", "IPC=1 MODEL=resnet101 DATASET=imagenet100", {"batch_size": 10}),
    ("delt", "IPC=10 MODEL=resnet101 DATASET=woof", {"batch_size": 50}),
    ("d3hr", "IPC=1", {"batch_size": 15}),
    ("d3hr", "IPC=50", {"batch_size": 100}),
    ("d3hr", "DATASET=tiny", {"batch_size": 50, "epochs": 300, "input_size": 64, "stem": "small"}),
    ("d3hr", "DATASET=cifar10 IPC=1", {"batch_size": 10, "epochs": 400, "eval_from": 291}),
    ("d3hr", "DATASET=cifar100 IPC=1", {"batch_size": 30, "epochs": 400, "val_ipc": None}),
    ("d3hr", "DATASET=cifar100 IPC=50", {"batch_size": 200}),
    ("rded", "DATASET=cifar10 MODEL=resnet10t TEACHER=resnet26d", {"stem": "standard", "teacher_stem": ("standard",)}),
    ("bps", "DATASET=cifar10 MODEL=resnet10t TEACHER=resnet26d", {"stem": "standard", "teacher_stem": ("standard",)}),
    ("bps", "DATASET=cifar10 MODEL=resnet34", {"stem": "small", "teacher_stem": ("small",)}),
    ("bps", "IPC=50", {"batch_size": 256}),
    ("bps", "DATASET=tiny IPC=50", {"batch_size": 64, "min_scale_crops": 0.6, "input_size": 64, "val_resize": 64}),
    ("bps", "DATASET=cifar10", {"batch_size": 16, "min_scale_crops": 0.1, "val_resize": 32, "stem": "small"}),
    ("bps", "DATASET=cifar100 IPC=7", {"batch_size": 128, "min_scale_crops": 0.2}),
    ("bps", "MODEL=vit_b_16", {"min_scale_crops": 1}),
]
LIVE_RECIPES |= {
    "edc_cifar": {"epochs": 1000, "batch_size": 10, "loss_type": "mse_gt", "ce_weight": 0.025, "schedule": "step"}
    | {"milestones": (800, 900, 950), "gamma": 0.5, "step_momentum": "kept", "input_size": 32, "stem": "small"}
    | {"ema_decay": 0.99, "ema_buffers": "live", "eval_every": 10, "eval_from": 810}
    | {"min_scale_crops": 0.08, "hflip": 0.5}
    | {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761), "teacher_model": ("ConvNetD1", "ConvNetD2")},
}
# settings that a recipe cannot do without
NEEDED = {"edc_cifar": {"TEACHER": "ConvNetD1 ConvNetD2", "TEACHER_CHECKPOINT": "a.pth b.pth"}}
# recipe -> data set and student -> (rate, stretch of the cosine) at 1, 10 and 50 images per class
RATES = {
    "fadrm": {
        ("imagenet1k", "resnet18"): ((1e-3, 2), (1e-3, 2), (1e-3, 1)),
        ("imagenet1k", "resnet50"): ((5e-4, 2), (1e-3, 2), (1e-3, 1)),
        ("imagenet1k", "resnet101"): ((3.5e-3, 2), (1e-3, 2), (5e-4, 1)),
        ("imagenet1k", "mobilenet_v2"): ((1e-3, 2),) * 3,
        ("cifar100", "resnet18"): ((5e-4, 2), (1e-3, 2), (1e-3, 1)),
        ("cifar100", "resnet50"): ((1e-3, 1), (1e-3, 2), (1e-3, 1)),
        ("cifar100", "resnet101"): ((5e-4, 1),) * 3,
        ("tiny", "resnet18"): ((1e-3, 2), (1e-3, 2), (1e-3, 1)),
        ("tiny", "resnet50"): ((5e-4, 2), (5e-4, 2), (5e-4, 1)),
        ("tiny", "resnet101"): ((5e-4, 2), (5e-4, 2), (5e-4, 1)),
        ("woof", "resnet18"): ((5e-4, 2), (5e-4, 1), (1e-3, 2)),
        ("woof", "resnet50"): ((5e-4, 2), (5e-3, 1), (5e-4, 1)),
        ("woof", "resnet101"): ((1e-3, 1), (5e-4, 2), (5e-4, 1)),
        ("nette", "resnet18"): ((5e-4, 2), (5e-4, 1), (5e-4, 2)),
        ("nette", "resnet50"): ((5e-4, 2), (5e-4, 1), (5e-4, 1)),
        ("nette", "resnet101"): ((5e-4, 2), (5e-4, 2), (1e-3, 2)),
    },
    "cvdd": {
        ("imagenet1k", "resnet50"): ((1e-3, 2), (1e-3, 2), (1e-3, 1)),
        ("imagenet1k", "resnet101"): ((1e-3, 2), (1e-3, 2), (5e-4, 2)),
        ("cifar10", "resnet18"): ((1e-3, 1),) * 3,
        ("cifar100", "resnet18"): ((1e-3, 1), (1e-3, 2), (1e-3, 1)),
        ("cifar100", "resnet101"): ((5e-4, 1),) * 3,
        ("tiny", "resnet18"): ((1e-3, 2), (1e-3, 1), (1e-3, 2)),
        ("tiny", "resnet50"): ((1e-3, 1),) * 3,
        ("nette", "resnet18"): ((5e-4, 2), (5e-4, 1), (5e-4, 2)),
        ("nette", "resnet50"): ((5e-4, 2), (1e-3, 1), (5e-4, 1)),
        ("nette", "resnet101"): ((5e-4, 2), (5e-4, 2), (1e-3, 2)),
    },
}
LEARNED = {"LR": "0.02"}  # the rate that MTT and DATM distill with the images
GIFT = {"epochs": 300, "batch_size": 100, "adamw_weight_decay": 1e-4, "decay_all": True, "schedule": "step"}
GIFT |= {"milestones": (200, 250), "gamma": 0.2, "step_momentum": "kept", "augment": "dsa", "dsa_mode": "gift"}
GIFT |= {"dsa_strategy": "color_crop_cutout_flip_scale_rotate", "factor_crop": 2, "mix_type": "None"}
LIVE_RECIPES |= {
    "gift": GIFT | {"loss_type": "gift", "ce_weight": 0.1},
    "cim": GIFT | {"loss_type": "mse_gt", "ce_weight": 0},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_authors_settings(name, launch):
    """300 epochs of AdamW at T = 20 on cutmix views, and the recipe's own settings."""
    common = {"epochs": 300, "temperature": 20, "mix_type": "cutmix", "sgd": False, "adamw_lr": 0.001}
    common |= {"adamw_weight_decay": 0.01}
    args = FKDConfig.parse(launch(f"scripts/recipes/{name}.sh")[1:])
    expected = common | RECIPES[name]
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.output_dir == f"save/{name}"


def test_settings_of_the_environment_are_heard(launch):
    """A recipe whose own value differs from that of the launcher takes the user's value for both."""

    def parsed(name, **environment):
        return KDConfig.parse(launch(f"scripts/recipes/{name}.sh", **NEEDED.get(name, {}), **environment)[1:])

    args = parsed("edc_cifar", DATASET="cifar100", LR="0.05", WEIGHT_DECAY="1e-3")
    assert (args.learning_rate, args.weight_decay) == (0.05, 1e-3)
    args = parsed("d3hr", SHUFFLE_PATCHES="2", VAL_IPC="7")
    assert (args.shuffle_patches, args.val_ipc, args.min_scale_crops) == (2, 7, 0.08)
    assert parsed("delt", SHUFFLE_PATCHES="2").shuffle_patches == 2
    committee = {"TEACHER": "resnet18 mobilenet_v2", "TEACHER_STEM": "small standard"}
    for name in ("rded", "bps"):
        assert parsed(name, DATASET="cifar10", **committee).teacher_stem == ("small", "standard")


@pytest.mark.parametrize("settings", ["DATASET=woof", "IPC=5", "MODEL=vgg11", "DATASET=tiny IPC=2"])
@pytest.mark.parametrize("name", ["cvdd", "fadrm"])
def test_an_unknown_rate_is_said(name, settings):
    """The sources have no rate for these; FADRM has one for ImageWoof. ETA alone does not answer for the rate."""
    environment = dict(setting.split("=") for setting in settings.split()) | {
        "PYTHON": "echo",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        ["sh", str(ROOT / f"scripts/recipes/{name}.sh")], capture_output=True, text=True, env=environment
    )
    known = (name, settings) == ("fadrm", "DATASET=woof")
    assert ("no rate is known for" in done.stderr) == (not known)
    assert known or "--adamw-lr 0.001 --smoothing 2" in done.stdout


@pytest.mark.parametrize("epochs", [300, 1000])
@pytest.mark.parametrize("name", ["gift", "cim"])
def test_gift_and_cim_evaluate_after_each_quarter(name, epochs, launch):
    """Four evaluations, as in the authors' code: after epochs 75, 150, 225 and 300 of 300, counted from 1."""
    config = KDConfig.parse(launch(f"scripts/recipes/{name}.sh", EPOCHS=str(epochs))[1:])
    assert [1 + epoch for epoch in range(epochs) if config.evaluates(epoch)] == [epochs * n // 4 for n in range(1, 5)]


def test_settings_that_need_other_flags(launch):
    """A schedule without milestones, and a loss that has no T², can be asked for in the environment."""
    words = launch("scripts/recipes/gift.sh", SCHEDULE="cos", FACTOR_CROP="1")
    assert (KDConfig.parse(words[1:]).schedule, KDConfig.parse(words[1:]).factor_crop) == ("cos", 1)
    config = FKDConfig.parse(launch("scripts/recipes/lpld_tiny.sh", LOSS_TYPE="mse_gt")[1:])
    assert (config.loss_type, config.loss_scale_t2, config.warmup_epochs) == ("mse_gt", False, 5)


def test_every_recipe_is_in_the_table():
    """docs/recipes.md has each recipe once, and quotes no published figure that is not in the recipe's header."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| [`")]
    names = [name for row in rows for name in re.findall(r"`(\w+)\.sh`", row[0])]
    assert sorted(names) == sorted([*RECIPES, *PLAIN_RECIPES, *LIVE_RECIPES])
    for row in rows:
        for name in re.findall(r"`(\w+)\.sh`", row[0]):
            header = (ROOT / f"scripts/recipes/{name}.sh").read_text().split("set -eu")[0]
            published = header[header.index("# Published") : header.index("# Recipe:")]
            figures = re.findall(r"\d\d\.\d", row[2])
            assert set(figures) <= set(re.findall(r"\d\d\.\d", published)), name
            assert row[2] == "none quoted" or re.search(r"\d\d", row[2]), name
    tests = set(re.findall(r"`(tests/\w+\.py)`", page))
    assert tests
    assert all((ROOT / path).exists() for path in tests)


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


@pytest.mark.parametrize(("name", "data", "model"), [(name, *key) for name in RATES for key in RATES[name]])
def test_rates_by_data_set_and_student(name, data, model, launch):
    """Also the size, the batch, the stem, the normalisation and the number of epochs depend on DATASET, MODEL, IPC."""
    sides = {"tiny": 64, "cifar10": 32, "cifar100": 32}
    means = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4867, 0.4408)}
    for ipc, (rate, stretch) in zip((1, 10, 50), RATES[name][data, model], strict=True):
        words = launch(f"scripts/recipes/{name}.sh", DATASET=data, MODEL=model, IPC=str(ipc))
        args = FKDConfig.parse(words[1:])
        assert (args.models, args.adamw_lr, args.smoothing, args.schedule) == ((model,), rate, stretch, "smoothed")
        assert (args.input_size, args.stem) == (sides.get(data, 224), "small" if data in sides else "standard")
        ten = data in ("woof", "nette")
        assert (args.batch_size, args.gradient_accumulation_steps) == (10 if ten else 16, 2)
        assert args.mean == means.get(data)
        assert args.epochs == (1000 if name == "fadrm" and (data == "cifar100" or (data, ipc) == ("tiny", 1)) else 300)
    words = launch(f"scripts/recipes/{name}.sh", DATASET=data, MODEL=model, LR="0.1", ETA="1.5")
    args = FKDConfig.parse(words[1:])
    assert (args.adamw_lr, args.smoothing) == (0.1, 1.5)


@pytest.mark.parametrize("name", RATES)
def test_dry_run_on_labels_of_the_recipe(name, launch, tiny, tmp_path):
    """Labels as the header of the recipe makes them, for CIFAR-100: normalised as the recipe says, with BSSL."""
    teachers = [("resnet18", "small"), (LIGHT, "standard")]
    words = ["--data", str(tiny.train), "--bssl", "-b", "16", "--epochs", "2", "--mix-type", "cutmix", "--use-fp16"]
    for number, (model, stem) in enumerate(teachers):
        torch.save(build_student(model, 3, number, stem).state_dict(), tmp_path / f"{number}.pth")
        words += ["-a", model, "--stem", stem, "--checkpoint", str(tmp_path / f"{number}.pth")]
    words += ["--ensemble-weights", "602", "428"] if name == "cvdd" else []
    words += ["--mean", "0.5071", "0.4867", "0.4408", "--std", "0.2675", "0.2565", "0.2761", "--input-size", "32"]
    words += ["--fkd-path", str(tmp_path / "labels"), "--device", "cpu", "-j", "0", "--accept-labels"]
    made = run(relabel_FKD, *words)
    assert made.code == 0, made.err
    where = {
        "TRAIN_DIR": tiny.train,
        "VAL_DIR": tiny.val,
        "FKD_PATH": tmp_path / "labels",
        "OUTPUT_DIR": tmp_path / "run",
    }
    where = {key: str(path) for key, path in where.items()} | {"DATASET": "cifar100", "IPC": "1", "EPOCHS": "2"}
    where["OUTPUT_DIR"] = str(tmp_path / "run")
    words = launch(f"scripts/recipes/{name}.sh", "--dry-run", "--accept-labels", **where)
    done = run(train_FKD_parallel, *words[1:], "--device", "cpu", "-j", 0)
    assert done.code == 0, done.err
    assert "nothing was trained" in done.out


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
    if name == "lpld_tiny":
        folders[2] = make_labels(tmp_path / "labels", "none")
        flags += ["--warmup-epochs", 1]
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
    model = "resnet18" if "--stem" in words else LIGHT
    result = run(train_FKD_parallel, *words[1:], "--device", "cpu", "--model", model, "-j", 0)
    assert result.code == 0, result.err
    assert "nothing was trained" in result.out
    assert not (tmp_path / "run" / "checkpoint.pth.tar").exists()


@pytest.mark.parametrize("name", LIVE_RECIPES)
def test_a_live_recipe_has_its_authors_settings(name, launch):
    """300 epochs of AdamW with KL at T = 20 on cutmix views, and the recipe's own settings."""
    words = launch(f"scripts/recipes/{name}.sh", **NEEDED.get(name, {}))
    assert words[0] == str(ROOT / "train_KD_parallel.py")
    args = KDConfig.parse(words[1:])
    expected = {"epochs": 300, "loss_type": "kl", "temperature": 20, "mix_type": "cutmix", "schedule": "smoothed"}
    expected |= {"sgd": False, "adamw_lr": 0.001, "adamw_weight_decay": 0.01, "gradient_accumulation_steps": 1}
    expected |= LIVE_RECIPES[name]
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.output_dir == f"save/{name}"


def test_a_live_committee_on_cifar100(launch):
    """Batch 50, SGD 0.1 with momentum 0.875 and weight decay 5e-4, cos2, crops of half of the image or more."""
    words = launch("scripts/recipes/edc_cifar.sh", DATASET="cifar100", **NEEDED["edc_cifar"])
    args = KDConfig.parse(words[1:])
    assert (args.epochs, args.batch_size, args.loss_type, args.ce_weight) == (1000, 50, "mse_gt", 0.025)
    assert (args.sgd, args.learning_rate, args.momentum, args.weight_decay) == (True, 0.1, 0.875, 5e-4)
    assert (args.schedule, args.smoothing, args.min_scale_crops, args.ema_decay) == ("cos2", 2, 0.5, 0.99)
    assert (args.eval_every, args.eval_from, args.mix_type) == (100, 0, "cutmix")
    words = launch("scripts/recipes/edc_cifar.sh", DATASET="cifar100", LR="0.2", **NEEDED["edc_cifar"])
    assert KDConfig.parse(words[1:]).learning_rate == 0.2


@pytest.mark.parametrize(("name", "settings", "expected"), DERIVED)
def test_settings_follow_from_data_set_student_and_images_per_class(name, settings, expected, launch):
    environment = dict(setting.split("=") for setting in settings.split())
    args = KDConfig.parse(launch(f"scripts/recipes/{name}.sh", **environment)[1:])
    assert {key: getattr(args, key) for key in expected} == expected


@pytest.mark.parametrize("name", ["rded", "delt", "d3hr", "bps", "cvdd", "fadrm"])
def test_an_unknown_data_set_is_refused(name):
    done = subprocess.run(
        ["sh", str(ROOT / f"scripts/recipes/{name}.sh")], capture_output=True, text=True, env={"DATASET": "mnist"}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: DATASET=mnist is none of imagenet1k, ")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("rded", "IPC=0"),
        ("rded", "EPOCHS=ten"),
        ("rded", "INPUT_SIZE=32px"),
        ("cao2", "IPC=1.5"),
        ("d3hr", "IPC=ten"),
        ("d3hr", "EPOCHS=0"),
        ("delt", "IPC=-1"),
        ("bps", "EPOCHS=ten"),
        ("bps", "IPC=0"),
        ("edc_cifar", "EPOCHS=ten"),
    ],
)
def test_a_setting_that_is_no_whole_number_is_refused(name, setting):
    """One sentence names it, before the shell computes with it."""
    environment = NEEDED.get(name, {}) | dict([setting.split("=")])
    command = ["sh", str(ROOT / f"scripts/recipes/{name}.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    example = f"{setting.partition('=')[0]}=10"
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {setting} is no whole number of at least 1; give one, such as {example}\n",
    )


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
