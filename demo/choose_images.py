"""Choose the demo's stand-in for a distilled set: a herding coreset in the teacher's features.

    python demo/choose_images.py demo/work

Ten training images per class, copied to `distilled`. They are real images, not distilled ones: herding picks
them one after another so that the mean of their features stays close to that of their class (Welling, 2009,
"Herding dynamical weights to learn"; for choosing images: iCaRL, Rebuffi et al., 2017, arXiv 1611.07725).
"""

import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.training.models import build_teacher
from utils.training.precision import Precision, pick_device
from utils.views.folders import open_folder
from utils.views.replay import Normalise
from utils.views.validation import ValidationBatches

IMAGES_PER_CLASS, SIDE = 10, 32


def herd(features: torch.Tensor, number: int) -> list[int]:
    """Pick rows of float [N, F] one after another: each brings the mean of the picked closest to the mean of all.

    Returns:
        `number` different rows, in the order in which they were picked.
    """
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    picked: list[int] = []
    for step in range(1, number + 1):
        distance = ((total + features) / step - mean).norm(dim=1)
        distance[picked] = torch.inf
        picked.append(int(distance.argmin()))
        total += features[picked[-1]]
    return picked


@torch.no_grad()
def features_of(samples: list[tuple[str, int]], checkpoint: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the teacher's last layer sees of every image, scaled to length one: [N, 512], and the classes [N]."""
    device = pick_device("auto")
    precision = Precision("fp32", device)
    teacher = build_teacher("resnet18", checkpoint).to(device)
    teacher.fc = torch.nn.Identity()
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device, precision.memory_format)
    pairs = [(teacher(images), targets) for images, targets in ValidationBatches(samples, SIDE, normalise, 0, device)]
    features, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return torch.nn.functional.normalize(features, dim=1), targets


def main(work: str) -> None:
    """Ask the teacher, choose, copy."""
    train = open_folder(f"{work}/train", "work folder")
    features, targets = features_of(train.samples, f"{work}/teacher.pth")
    for number, name in enumerate(train.classes):
        folder = Path(work) / "distilled" / name
        folder.mkdir(parents=True)
        rows = (targets == number).nonzero()[:, 0]
        for pick in herd(features[rows], IMAGES_PER_CLASS):
            shutil.copy(train.samples[rows[pick]][0], folder)
    print(f"{IMAGES_PER_CLASS * len(train.classes)} images chosen by herding in {work}/distilled")


if __name__ == "__main__":
    main(sys.argv[1])
