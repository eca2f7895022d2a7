"""Train the demo's teacher: a ResNet-18 on hard labels of the whole training split.

    python demo/train_teacher.py demo/work

Writes the weights to `demo/work/teacher.pth`. Prints the top-1 on the validation split, and writes it to
`demo/work/teacher.json`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.folders import open_folder
from utils.data.replay import Normalise
from utils.data.validation import ValidationBatches
from utils.data.workers import ViewDataset
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run.loading import batch_class
from utils.training.metrics import Metrics, MetricSums
from utils.training.models import build_student
from utils.training.optimizer import build_optimizer, set_lr
from utils.training.precision import Precision, pick_device
from utils.training.schedules import lr_factor

EPOCHS, BATCH_SIZE, SIDE, LR = 12, 100, 32, 1e-3


def main(work: str, model_name: str = "resnet18", epochs: int = EPOCHS) -> None:
    """Train a teacher on `work`/train, evaluate it on `work`/val, and save its weights and top-1 in `work`."""
    device = pick_device("auto")
    precision = Precision("auto", device)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device, precision.memory_format)
    train, val = (open_folder(f"{work}/{part}", "work folder") for part in ("train", "val"))
    policy = ViewPolicy(0, SIDE, 0.5, 1.0, "none", 0.8, 1.0, hflip=0)
    dataset = ViewDataset(train.samples, DrawnViews(policy, len(train.samples), BATCH_SIZE), SIDE)
    resident = batch_class(True, device)
    batches = resident(dataset, range(epochs), normalise, workers=0, device=device)

    model = precision.place(build_student(model_name, len(train.classes), seed=0))
    optimizer = build_optimizer(model, sgd=False, lr=LR, weight_decay=0.01)
    for epoch in range(epochs):
        set_lr(optimizer, LR * lr_factor("cos", epoch, epochs))
        model.train()
        sums = MetricSums(device)
        for batch in batches.epoch(epoch):
            outputs = precision.outputs(model, batch.images)
            loss = F.cross_entropy(outputs, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums.add(loss, outputs, batch.targets)
        metrics = sums.result()
        print(f"teacher epoch {epoch + 1:>2}/{epochs}  loss {metrics.loss:.3f}  top-1 {metrics.top1:.1f}%", flush=True)

    metrics = evaluate(model, ValidationBatches(val.samples, SIDE, normalise, 0, device), precision)
    torch.save(model.state_dict(), f"{work}/teacher.pth")
    Path(f"{work}/teacher.json").write_text(json.dumps({"top1": metrics.top1}))
    print(f"teacher top-1 {metrics.top1:.2f}%")


@torch.no_grad()
def evaluate(model: torch.nn.Module, validation: ValidationBatches, precision: Precision) -> Metrics:
    """Return the model's mean cross-entropy, top-1 and top-5 on the validation images."""
    model.eval()
    sums = MetricSums(precision.device)
    for images, targets in validation:
        outputs = precision.outputs(model, images)
        sums.add(F.cross_entropy(outputs, targets), outputs, targets)
    return sums.result()


if __name__ == "__main__":
    main(sys.argv[1])
