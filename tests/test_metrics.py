"""Top-k and mean loss are right over micro-batches of different sizes."""

import pytest
import torch

from utils.training.metrics import MetricSums


def test_means_are_over_samples():
    """A small micro-batch counts by its rows."""
    sums = MetricSums("cpu")
    sums.add(torch.tensor(1.0), torch.eye(10)[:4], torch.tensor([0, 1, 2, 9]))
    sums.add(torch.tensor(6.0), torch.eye(10)[4:5], torch.tensor([5]))
    metrics = sums.result()
    assert metrics.samples == 5
    assert metrics.loss == pytest.approx(2.0)
    assert metrics.top1 == pytest.approx(60)


@pytest.mark.parametrize("rank", range(10))
def test_ranks(rank):
    """A class at rank r counts for top-1 if r = 0 and for top-5 if r <= 4."""
    sums = MetricSums("cpu")
    sums.add(torch.tensor(0.0), torch.arange(10.0).flip(0)[None], torch.tensor([rank]))
    metrics = sums.result()
    assert metrics.top1 == (100 if rank == 0 else 0)
    assert metrics.top5 == (100 if rank < 5 else 0)


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_no_more_than_five_classes(classes):
    """Top-5 of five or fewer classes is always right."""
    sums = MetricSums("cpu")
    outputs = torch.randn(20, classes, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % classes
    sums.add(torch.tensor(0.0), outputs, targets)
    assert sums.result().top5 == 100
    assert sums.result().top1 == pytest.approx(100 * (outputs.argmax(1) == targets).double().mean().item())
