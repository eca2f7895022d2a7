"""Train the demo's teacher: a ResNet-18 on hard labels of the whole training split.

    python demo/train_teacher.py demo/work

Writes `teacher.pth`; prints its top-1 on the validation split and writes it to `teacher.json`.
"""

import json
import sys
from pathlib import Path

import torch

from utils.labels.views import DrawnViews, ViewPolicy
from utils.training.epoch import evaluate, train_one_epoch
from utils.training.learner import Learner
from utils.training.losses import build_loss
from utils.training.models import build_student
from utils.training.optimizer import build_optimizer, set_lr
from utils.training.precision import Precision, pick_device
from utils.training.schedules import lr_factor
from utils.views.folders import open_folder
from utils.views.loaders import build_batches
from utils.views.replay import IMAGENET_MEAN, IMAGENET_STD, Normalise
from utils.views.validation import ValidationBatches
from utils.views.workers import ViewDataset

EPOCHS, BATCH_SIZE, SIDE, LR = 12, 100, 32, 1e-3


def main(work: str, model_name: str = "resnet18", epochs: int = EPOCHS) -> None:
    """Train on `work`/train, evaluate on `work`/val, and save the weights."""
    device = pick_device("auto")
    precision = Precision("auto", device)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device, precision.memory_format)
    train, val = (open_folder(f"{work}/{part}", "work folder") for part in ("train", "val"))
    policy = ViewPolicy(0, SIDE, 0.5, 1.0, "none", 0.8, 1.0, hflip=0)
    views = DrawnViews(policy, len(train.samples), BATCH_SIZE)
    dataset = ViewDataset(train.samples, views, SIDE)
    batches = build_batches("resident", dataset, range(epochs), normalise, workers=0, device=device)

    model = build_student(model_name, len(train.classes), seed=0)
    model = model.to(device, memory_format=precision.memory_format)
    optimizer = build_optimizer(model, sgd=False, lr=LR, weight_decay=0.01)
    learner = Learner(model, optimizer, build_loss("ce"), precision, BATCH_SIZE)
    for epoch in range(epochs):
        set_lr(optimizer, LR * lr_factor("cos", epoch, epochs))
        learner.start_epoch()
        train_one_epoch([learner], batches.epoch(epoch))
        metrics = learner.sums.result()
        print(f"teacher epoch {epoch + 1:>2}/{epochs}  loss {metrics.loss:.3f}  top-1 {metrics.top1:.1f}%", flush=True)

    [metrics] = evaluate([learner], ValidationBatches(val.samples, SIDE, normalise, 0, device))
    torch.save(model.state_dict(), f"{work}/teacher.pth")
    Path(f"{work}/teacher.json").write_text(json.dumps({"top1": metrics.top1}))
    print(f"teacher top-1 {metrics.top1:.2f}%")


if __name__ == "__main__":
    main(sys.argv[1])
