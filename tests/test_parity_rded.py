"""Training losses are those that RDED's own evaluator printed, on views in which nothing is left to chance."""

import pytest
import torch
from helpers import ROOT, losses, read_run, run
from torchvision.models import resnet18

import train_KD_parallel

IMAGES = (
    ROOT / "tests" / "data" / "rded"
)  # 5 classes of 4 images, 64 px, mirror-symmetric, so that flips change nothing
# mean training loss of five epochs, as printed by validation/main.py of github.com/LINs-lab/RDED: resnet18 built after
# torch.manual_seed(0), factor 1, so that crops show the whole image, no mixing, one batch, T = 4, fp32 on a CPU. Its
# second forward pass of the student changes running statistics alone, which training does not read.
LOSSES = [0.008529785, 0.034556255, 0.016862722, 0.001120500, 0.000882822]
# seen with PyTorch 2.0.1 and 2.14.1 and one or two threads: 2e-6, 5e-6, 2e-4, 2e-3 and 7e-3
DRIFT = [5e-6, 2e-5, 1e-3, 1e-2, 3e-2]


def reference_teacher(path):
    """Write the weights of the reference's teacher: untrained, with running statistics of 20 batches of noise."""
    torch.manual_seed(124)
    model = resnet18(num_classes=5)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 64, 64))
    torch.save({"model": model.state_dict()}, path)
    return path


def test_losses_are_those_of_rded(launch, tmp_path):
    """The recipe trains, with the settings of the reference run."""
    settings = {"MODEL": "resnet18", "EPOCHS": "5", "BATCH_SIZE": "20", "MIX_TYPE": "None", "TEMPERATURE": "4"}
    settings |= {"SHUFFLE_PATCHES": "1", "INPUT_SIZE": "64", "IPC": "4", "VAL_IPC": "4"}
    settings |= {"OUTPUT_DIR": str(tmp_path / "run")}
    settings |= {"TRAIN_DIR": str(IMAGES / "train"), "VAL_DIR": str(IMAGES / "val")}
    settings |= {"TEACHER_CHECKPOINT": str(reference_teacher(tmp_path / "teacher.pth"))}
    words = launch("scripts/recipes/rded.sh", "--accept-labels", "--precision", "fp32", "--device", "cpu", **settings)
    result = run(train_KD_parallel, *words[1:])
    assert result.code == 0, result.err
    found = losses(read_run(tmp_path / "run"))
    for one, expected, drift in zip(found, LOSSES, DRIFT, strict=True):
        assert one == pytest.approx(expected, rel=drift)
