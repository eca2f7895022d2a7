"""Learning rates and temperatures have the values worked out by hand, the right ends, and never rise."""

import itertools
import math

import pytest
import torch

from utils.config import SCHEDULES, TEMPERATURE_SCHEDULES, FKDConfig, KDConfig
from utils.system.errors import InputError
from utils.training.schedules import lr_factor, temperature_at


@pytest.mark.parametrize(
    ("schedule", "epoch", "epochs", "factor"),
    [
        ("linear", 0, 300, 1),
        ("linear", 75, 300, 0.75),
        ("linear", 299, 300, 1 / 300),
        ("linear-smoothed", 0, 300, 1),
        ("linear-smoothed", 75, 300, 0.875),
        ("linear-smoothed", 299, 300, 1 - 299 / 600),
        ("linear-smoothed", 300, 300, 0.5),
        ("cos", 0, 300, 1),
        ("cos", 100, 300, 0.75),
        ("cos", 150, 300, 0.5),
        ("cos", 300, 300, 0),
        ("smoothed", 0, 300, 1),
        ("smoothed", 150, 300, 0.5 * (1 + math.sqrt(0.5))),
        ("smoothed", 300, 300, 0.5),
        ("cos2", 0, 300, 1),
        ("cos2", 250, 300, 0.5 * (1 + math.cos(5 * math.pi / 12))),
        ("cos2", 251, 300, 0.5 * (1 + math.cos(5 * math.pi / 12)) * 49 / 300),
        ("cos2", 300, 300, 0),
        ("prism", 0, 300, 1),
        ("prism", 250, 300, 0.75),
        ("prism", 251, 300, 0.75 * 49 / 300),
        ("prism", 300, 300, 0),
    ],
)
def test_schedules_have_known_values(schedule, epoch, epochs, factor):
    """The formulas of the docstring hold at points that are easy to compute."""
    assert lr_factor(schedule, epoch, epochs) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_smoothing_1_is_the_cosine(epochs):
    """A larger s ends higher."""
    for epoch in range(epochs):
        assert lr_factor("smoothed", epoch, epochs, 1.0) == pytest.approx(lr_factor("cos", epoch, epochs))
    assert lr_factor("smoothed", epochs, epochs, 3.0) == pytest.approx(0.75)


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_linear_smoothing_1_is_linear(epochs):
    """s = 4 ends at three quarters."""
    for epoch in range(epochs):
        assert lr_factor("linear-smoothed", epoch, epochs, 1.0) == lr_factor("linear", epoch, epochs)
    assert lr_factor("linear-smoothed", epochs, epochs, 4.0) == 0.75


@pytest.mark.parametrize("epochs", [1, 7, 101, 300])
def test_prism_is_cos2_stretched_by_2_5(epochs):
    """Bit for bit, and bit for bit the formula of PRISM's code."""
    for epoch in range(epochs):
        expected = 0.5 * (1 + math.cos(math.pi * (epoch / (2.5 * epochs))))
        if epoch > epochs * 5 / 6:
            expected = 0.5 * (1 + math.cos(math.pi * (1 / 3))) * (epochs - epoch) / epochs
        assert lr_factor("prism", epoch, epochs, 4.0) == lr_factor("cos2", epoch, epochs, 2.5) == expected


@pytest.mark.parametrize("epochs", [7, 101, 300])
@pytest.mark.parametrize("smoothing", [1.5, 2.0])
def test_cos2_is_that_of_edc(epochs, smoothing):
    """EDC gives PyTorch this function for CIFAR-100 and ImageNet-10 (--ls-type cos2)."""
    st = smoothing
    theirs = [
        0.5 * (1 + math.cos(math.pi * step / (st * epochs)))
        if step <= epochs * 5 / 6
        else 0.5 * (1 + math.cos(math.pi * 5 / (6 * st))) * (6 * epochs - 6 * step) / (6 * epochs)
        for step in range(epochs)
    ]
    assert [lr_factor("cos2", epoch, epochs, st) for epoch in range(epochs)] == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("epochs", [7, 101, 300])
@pytest.mark.parametrize("main", ["cos", "linear", "smoothed"])
def test_a_warm_up_is_that_of_pytorch(epochs, main):
    """LinearLR, and after it another scheduler over the other epochs, as torchvision's references and LPLD have it."""
    rest = epochs - 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    after = {
        "cos": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=rest, eta_min=0.0),
        "linear": lambda: schedulers.LambdaLR(optimizer, lambda step: 1 - step / rest),
        "smoothed": lambda: schedulers.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / rest / 2)) / 2),
    }[main]()
    first = schedulers.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    both = schedulers.SequentialLR(optimizer, schedulers=[first, after], milestones=[5])
    for epoch in range(epochs):
        ours = lr_factor(main, epoch, epochs, warmup_epochs=5, warmup_factor=0.01)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        both.step()


def test_a_warm_up_does_not_move_milestones():
    """They stay epochs of the whole run."""
    factors = [
        lr_factor("step", epoch, 8, milestones=(4, 6), gamma=0.5, warmup_epochs=2, warmup_factor=0.2)
        for epoch in range(8)
    ]
    assert factors == pytest.approx([0.2, 0.6, 1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--warmup-factor 0.1", "--warmup-factor 0.1 has no effect without --warmup-epochs"),
        ("--warmup-epochs 9 --epochs 9", "--warmup-epochs 9 leaves none of --epochs 9 to the schedule"),
        ("--warmup-epochs -1", "--warmup-epochs: -1 must be at least 0"),
        ("--warmup-epochs 2 --warmup-factor 0", "--warmup-factor: 0 must be above 0"),
        ("--warmup-epochs 3 --schedule step --milestones 3 5", "--milestones 3 5: epoch 3 is not after the 3 --warmup"),
        ("--schedule cos2 --smoothing 0.9", "--smoothing 0.9 lets the rate of --schedule cos2 rise again"),
    ],
)
def test_wrong_warm_ups_and_stretches(flags, said):
    """One sentence names the flag."""
    with pytest.raises(InputError) as error:
        FKDConfig.parse([*FOLDERS, "--fkd-path", "labels", *flags.split()])
    assert said in str(error.value)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "step"])
@pytest.mark.parametrize("epochs", [1, 7, 300])
def test_every_schedule_starts_at_one_and_falls(schedule, epochs):
    """Every trained epoch has a positive rate."""
    factors = [lr_factor(schedule, epoch, epochs) for epoch in range(epochs)]
    assert factors[0] == 1
    assert all(a > b > 0 for a, b in itertools.pairwise(factors))


def test_the_step_schedule_falls_at_its_milestones():
    """The factor applies from the milestone itself on, counted from 0, and once more at the next one."""
    factors = [lr_factor("step", epoch, 9, milestones=(4, 6), gamma=0.5) for epoch in range(9)]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_the_step_schedule_is_that_of_pytorch(epochs):
    """MultiStepLR has the same rates after each of its steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.2)
    for epoch in range(epochs):
        assert lr_factor("step", epoch, epochs, milestones=[2, 5], gamma=0.2) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        theirs.step()


FOLDERS = ["--train-dir", "images", "--val-dir", "val"]


@pytest.mark.parametrize(
    ("words", "epochs", "milestones"),
    [
        ("6", 9, (6,)),
        ("2/3 5/6", 2000, (2000 * 2 // 3, 2000 * 5 // 6)),
        ("0.667 0.833", 300, (200, 249)),
        ("0.29 0.58", 100, (29, 58)),  # as floats, 0.29 · 100 and 0.58 · 100 lie just below these
        ("1/3 200", 300, (100, 200)),
    ],
)
def test_milestones_are_epochs_or_shares(words, epochs, milestones):
    """A share is rounded down exactly, and the settings hold the epochs."""
    flags = ["--schedule", "step", "--milestones", *words.split(), "--epochs", str(epochs)]
    for kind, labels in ((FKDConfig, ["--fkd-path", "labels"]), (KDConfig, [])):
        config = kind.parse(FOLDERS + labels + flags)
        assert config.milestones == milestones
        assert config.settings()["milestones"] == milestones
    assert KDConfig.parse(FOLDERS).milestones == ()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--milestones 3", "--milestones 3 has no effect without --schedule step"),
        ("--cos --milestones 3", "--milestones 3 has no effect without --schedule step"),
        ("--gamma 0.2", "--gamma 0.2 has no effect without --schedule step"),
        ("--step-momentum kept", "--step-momentum has no effect without --schedule step"),
        ("--schedule step", "--schedule step needs --milestones"),
        ("--schedule step --milestones 5 3", "--milestones 5 3: the epochs 5 3 are not in ascending order"),
        ("--schedule step --milestones 3 3", "--milestones 3 3: the epochs 3 3 are not in ascending order"),
        (
            "--schedule step --milestones 1/2 3 --epochs 9",
            "--milestones 1/2 3: the epochs 4 3 are not in ascending order",
        ),
        ("--schedule step --milestones 9 --epochs 9", "epoch 9 is not reached, since the last of --epochs 9 is 8"),
        ("--schedule step --milestones 0.1 --epochs 9", "a share of --epochs 9 is below 1 epoch"),
        *(
            (f"--schedule step --milestones {text}", f"'{text}' is neither an epoch")
            for text in "0 1.5 1/0 nan x 5/2".split()
        ),
    ],
)
def test_wrong_milestones(flags, said):
    """One sentence names the flag."""
    with pytest.raises(InputError) as error:
        FKDConfig.parse([*FOLDERS, "--fkd-path", "labels", *flags.split()])
    assert said in str(error.value)


def test_an_unknown_schedule_is_refused():
    """There is no silent default."""
    with pytest.raises(ValueError, match="warmup"):
        lr_factor("warmup", 0, 1)


@pytest.mark.parametrize(
    ("schedule", "epochs", "options", "values"),
    [
        ("constant", 3, {}, [20, 20, 20]),
        ("step", 3, {"step_size": 1}, [14, 9.8, 6.86]),  # the reference trainer printed these
        ("step", 6, {"step_size": 2, "gamma": 0.3}, [20, 6, 6, 2, 2, 2]),  # 1.8 is below the floor
        ("cosine", 3, {}, [15.5, 6.5, 2]),
        ("cosine", 2, {"low": 4}, [12, 4]),
        ("step-reverse", 4, {"step_size": 2, "gamma": 0.1}, [2, 20, 20, 20]),
        ("step-reverse", 3, {"step_size": 1, "gamma": 0.1}, [2, 20, 20]),
        ("cosine-reverse", 3, {}, [6.5, 15.5, 20]),
        ("cosine-reverse", 2, {"low": 4}, [12, 20]),
    ],
)
def test_temperature_schedules_have_known_values(schedule, epochs, options, values):
    """They start from 20, and epochs count from 1."""
    found = [temperature_at(schedule, epoch, epochs, 20.0, **options) for epoch in range(epochs)]
    assert found == pytest.approx(values)


@pytest.mark.parametrize("schedule", TEMPERATURE_SCHEDULES)
def test_temperatures_go_one_way(schedule):
    found = [temperature_at(schedule, epoch, 300, 20.0) for epoch in range(300)]
    assert found == sorted(found, reverse=not schedule.endswith("reverse"))
    assert min(found) >= (0.2 if schedule == "step-reverse" else 2)
    assert max(found) <= 20


def test_an_unknown_temperature_schedule():
    with pytest.raises(ValueError, match="linear"):
        temperature_at("linear", 0, 1, 20.0)
