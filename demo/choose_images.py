"""Choose the images that the demo uses in place of a distilled set: a herding coreset in the teacher's features.

    python demo/choose_images.py demo/work

Copies ten training images per class to the folder `demo/work/distilled`. They are real images, not distilled ones.
Herding picks the images of a class one by one, so that the mean of their features stays close to the class mean
(Welling, 2009, "Herding dynamical weights to learn"; for choosing images: iCaRL, Rebuffi et al., 2017, arXiv
1611.07725).
"""

import shutil
import sys
from pathlib import Path

import torch

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.folders import open_folder
from utils.data.replay import Normalise
from utils.data.validation import ValidationBatches
from utils.training.models import build_teacher
from utils.training.precision import Precision, pick_device

IMAGES_PER_CLASS, SIDE = 10, 32


def herd(features: torch.Tensor, number: int) -> list[int]:
    """Pick rows of `features` [N, F] greedily, so that the mean of the picked rows is close to the mean of all rows.

    Returns:
        `number` distinct row numbers, in the order of picking.
    """
    mean = features.mean(dim=0)
    total = torch.zeros_like(mean)
    picked: list[int] = []
    for step in range(1, number + 1):
        distance = ((total + features) / step - mean).norm(dim=1)
        distance[picked] = torch.inf
        picked.append(int(distance.argmin()))
        total += features[picked[-1]]
    return picked


@torch.no_grad()
def features_of(samples: list[tuple[str, int]], checkpoint: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's penultimate features [N, 512], scaled to unit length, and the classes [N] of the images."""
    device = pick_device("auto")
    precision = Precision("fp32", device)
    teacher = build_teacher("resnet18", checkpoint).to(device)
    teacher.fc = torch.nn.Identity()
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device, precision.memory_format)
    pairs = [(teacher(images), targets) for images, targets in ValidationBatches(samples, SIDE, normalise, 0, device)]
    features, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return torch.nn.functional.normalize(features, dim=1), targets


def main(work: str) -> None:
    """Choose images of `work`/train by herding, and copy them to `work`/distilled."""
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
