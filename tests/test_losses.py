"""Losses equal sums that are written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.labels.packed_codec import keep_largest
from utils.labels.types import TopK, Weighted
from utils.system.errors import InputError
from utils.training.losses import (
    NEEDS_LOGITS,
    as_logits,
    build_loss,
    keep_top_probabilities,
    smooth_logits,
    with_smoothed_logits,
)

generator = torch.Generator().manual_seed(0)
OUTPUTS, LOGITS = (3 * torch.randn(6, 7, generator=generator) for _ in range(2))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 6])


def softmax(x):
    x = np.exp(np.asarray(x, dtype=np.float64))
    return x / x.sum(axis=1, keepdims=True)


def cross_entropy():
    return -np.log(softmax(OUTPUTS)[range(6), TARGETS]).mean()


def soft(temperature):
    return softmax(OUTPUTS / temperature), softmax(LOGITS / temperature)


def value(*args, **options):
    return build_loss(*args, **options)(OUTPUTS, LOGITS, TARGETS).item()


def gradient(*args, **options):
    """Return the gradient of a loss with respect to the student's logits."""
    outputs = OUTPUTS.clone().requires_grad_()
    build_loss(*args, **options)(outputs, LOGITS, TARGETS).backward()
    return outputs.grad


@pytest.mark.parametrize("temperature", [1.0, 3.0, 20.0])
def test_kl(temperature):
    """KL is the batch mean of sum p (log p - log q), without T squared."""
    q, p = soft(temperature)
    assert value("kl", temperature) == pytest.approx((p * (np.log(p) - np.log(q))).sum(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(temperature):
    """DIST is T² (2 (1 - mean row correlation) + 2 (1 - mean column correlation))."""
    q, p = soft(temperature)
    inter = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert value("dist", temperature) == pytest.approx(temperature**2 * 2 * (2 - inter - intra), rel=1e-3)


@pytest.mark.parametrize(("name", "factor"), [("kl", 1.5**2), ("softce", 1.5**2)])
def test_t_squared(name, factor):
    """T is the student's temperature, also if it is a tensor that changes between epochs."""
    for student in (1.5, torch.tensor(1.5)):
        how = {"temperature": 4.0, "student_temperature": student}
        assert value(name, **how, scale_t2=True) == pytest.approx(factor * value(name, **how), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_softce(temperature):
    """It is - sum p log q, and its gradients are those of KL."""
    q, p = soft(temperature)
    assert value("softce", temperature) == pytest.approx(-(p * np.log(q)).sum(axis=1).mean(), rel=1e-5)
    torch.testing.assert_close(gradient("softce", temperature), gradient("kl", temperature))
    torch.testing.assert_close(gradient("softce", temperature), torch.tensor((q - p) / 6 / temperature).float())


def cosines(reference):
    """Return 1 - the mean cosine of the rows of OUTPUTS and a reference, and its gradient: float64."""
    o, r = OUTPUTS.double().numpy(), np.asarray(reference, np.float64)
    lengths = np.linalg.norm(o, axis=1, keepdims=True), np.linalg.norm(r, axis=1, keepdims=True)
    similar = (o * r).sum(axis=1, keepdims=True) / lengths[0] / lengths[1]
    slope = similar * o / lengths[0] ** 2 - r / lengths[0] / lengths[1]
    return 1 - similar.mean(), torch.tensor(slope / 6).float()


def test_cosine():
    """The labels may be halves; the loss is computed in float32."""
    loss, slope = cosines(LOGITS)
    assert value("cosine", 20.0, ce_weight=0.7) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient("cosine"), slope)
    half = build_loss("cosine")(OUTPUTS, LOGITS.half(), TARGETS)
    assert (half.dtype, half.item()) == (torch.float32, pytest.approx(cosines(LOGITS.half())[0], rel=1e-5))


def gift_labels(weight=0.1):
    """Return t/‖t‖ + weight h/‖h‖, where h has 0.9 at the target, and 0.1 spread over the 6 other classes."""
    h = np.full((6, 7), 0.1 / 6)
    h[range(6), TARGETS] = 0.9
    t = LOGITS.double().numpy()
    return t / np.linalg.norm(t, axis=1, keepdims=True) + weight * h / np.linalg.norm(h, axis=1, keepdims=True)


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_gift(weight):
    """1 - mean cos(output, t/‖t‖ + weight h/‖h‖), as GIFT's losses_benchmark.py computes it with weight 0.1."""
    loss, slope = cosines(gift_labels(weight))
    assert value("gift", 20.0, ce_weight=weight) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient("gift", ce_weight=weight), slope)


def test_gift_without_hard_labels_is_the_cosine():
    """The length of the teacher's logits does not matter."""
    assert (
        value("gift", ce_weight=0.0)
        == value("cosine")
        == pytest.approx(build_loss("cosine")(OUTPUTS, 5 * LOGITS, TARGETS).item(), rel=1e-5)
    )


@pytest.mark.parametrize(("name", "power"), [("mse_gt", 2), ("mae_gt", 1)])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_regression_to_logits(name, power, weight):
    """The loss is the mean over rows and classes plus weighted cross-entropy; temperature has no effect."""
    distance = (np.abs(OUTPUTS.numpy() - LOGITS.numpy()) ** power).mean()
    assert value(name, 20.0, ce_weight=weight) == pytest.approx(distance + weight * cross_entropy(), rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "dist", "softce", "mse_gt", "mae_gt", "gift", "cosine"])
@pytest.mark.parametrize("keep_topk", [None, 4, 2])
@pytest.mark.parametrize("rest", [True, False])
def test_sparse_labels_give_the_loss_of_dense_ones(name, keep_topk, rest):
    """Top-4 labels give the same loss in sparse and in dense form."""
    values, classes = LOGITS.topk(4, dim=1)
    labels = TopK(values, classes, torch.tensor([[-20.0, 0.5]] * 6) if rest else None)
    dense = labels.dense(7, 3.0, renormalise=False)
    loss = build_loss(name, 3.0, 0.1, 4 if keep_topk is None and name in NEEDS_LOGITS else keep_topk)
    torch.testing.assert_close(loss(OUTPUTS, labels, TARGETS), loss(OUTPUTS, dense, TARGETS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_smoothed_logits(share):
    """Logits z become (1 - s) z + s / C, in dense and in top-k labels; the latter are then softened by T / (1 - s)."""
    smoothed = (1 - share) * LOGITS + share / 7
    for name in ("kl", "dist", "mse_gt"):
        loss = build_loss(name, 4.0)
        expected = loss(OUTPUTS, smoothed, TARGETS)
        torch.testing.assert_close(
            with_smoothed_logits(loss, share, OUTPUTS, LOGITS.half(), TARGETS), expected, rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(with_smoothed_logits(loss, share, OUTPUTS, LOGITS, TARGETS), expected)
    values, classes = LOGITS.topk(3, dim=1)
    top = TopK(values, classes, None)
    warmer = build_loss("kl", 4.0 / (1 - share), student_temperature=4.0, renormalise=True)(OUTPUTS, top, TARGETS)
    loss = build_loss("kl", 4.0, renormalise=True)
    torch.testing.assert_close(with_smoothed_logits(loss, share, OUTPUTS, top, TARGETS), warmer)
    weighted = with_smoothed_logits(loss, share, OUTPUTS, Weighted(top, torch.arange(6) * 0.4), TARGETS)
    assert weighted > 0
    assert weighted != warmer


def test_smoothed_logits_keep_the_rest():
    """Mean and variance of the logits that are not stored are those of smoothed logits."""
    whole = smooth_logits(LOGITS, 0.2, 7)
    top, smoothed = keep_largest(LOGITS, 3), keep_largest(whole, 3)
    for found, expected in zip(smooth_logits(top, 0.2, 7), smoothed, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_renormalised_labels_have_no_mass_beyond_the_kept(temperature):
    """MR is a softmax over the k kept logits and exactly 0 elsewhere, also if the other mass is known."""
    values, classes = LOGITS.topk(3, dim=1)
    labels = TopK(values.half(), classes, torch.zeros(6, 2))
    probabilities = torch.softmax(as_logits(labels, 7, temperature, renormalise=True) / temperature, dim=1)
    kept = torch.softmax(values.half().float() / temperature, dim=1)
    torch.testing.assert_close(probabilities.gather(1, classes), kept)
    assert (probabilities == 0).sum() == 6 * 4


def test_ce_ignores_the_soft_labels():
    """Only hard labels count, also without soft ones."""
    loss = build_loss("ce", keep_topk=2)
    assert loss(OUTPUTS, None, TARGETS).item() == pytest.approx(cross_entropy(), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(1, 10), st.integers(0, 99))
def test_keep_topk_moves_mass_and_loses_none(rows, classes, k, seed):
    """The k largest probabilities stay; the other classes share the rest evenly."""
    p = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)).double().softmax(dim=1)
    kept = keep_top_probabilities(p, k)
    torch.testing.assert_close(kept.sum(dim=1), torch.ones(rows).double())
    if k >= classes:
        assert torch.equal(kept, p)
        return
    for before, after in zip(p.tolist(), kept.tolist(), strict=True):
        order = sorted(range(classes), key=lambda c: -before[c])
        assert [after[c] for c in order[:k]] == [before[c] for c in order[:k]]
        share = sum(before[c] for c in order[k:]) / (classes - k)
        assert [after[c] for c in order[k:]] == pytest.approx([share] * (classes - k))


@pytest.mark.parametrize("name", ["kl", "dist", "softce"])
def test_keep_topk_of_probabilities(name):
    """The loss on kept probabilities equals the loss on logits with these probabilities."""
    kept = keep_top_probabilities((LOGITS / 2).softmax(dim=1), 3)
    expected = build_loss(name, 2.0)(OUTPUTS, 2 * kept.log(), TARGETS).item()
    assert value(name, 2.0, keep_topk=3) == pytest.approx(expected, rel=1e-4)
    assert value(name, 2.0, keep_topk=3) != pytest.approx(value(name, 2.0), rel=1e-3)


@pytest.mark.parametrize(("name", "power"), [("mse_gt", 2), ("mae_gt", 1)])
def test_keep_topk_of_logits(name, power):
    """The distance is the mean over the kept logits; cross-entropy is over all classes."""
    z, o = LOGITS.numpy(), OUTPUTS.numpy()
    kept = np.argsort(-z, axis=1)[:, :3]
    distance = (np.abs(np.take_along_axis(o, kept, 1) - np.take_along_axis(z, kept, 1)) ** power).mean()
    assert value(name, ce_weight=0.1, keep_topk=3) == pytest.approx(distance + 0.1 * cross_entropy(), rel=1e-5)


@pytest.mark.parametrize(("name", "weight"), [("cosine", 0.0), ("gift", 0.1)])
def test_keep_topk_of_cosines(name, weight):
    """The cosine is over the kept logits; the norms of t are theirs, those of h are over all classes."""
    kept = np.argsort(-LOGITS.numpy(), axis=1)[:, :3]
    t, o = (np.take_along_axis(x.double().numpy(), kept, 1) for x in (LOGITS, OUTPUTS))
    h = np.where(kept == TARGETS[:, None].numpy(), 0.9, 0.1 / 6) / np.sqrt(0.9**2 + 0.1**2 / 6)
    reference = t / np.linalg.norm(t, axis=1, keepdims=True) + weight * h
    lengths = np.linalg.norm(o, axis=1) * np.linalg.norm(reference, axis=1)
    expected = 1 - ((o * reference).sum(axis=1) / lengths).mean()
    assert value(name, ce_weight=0.1, keep_topk=3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "dist", "mse_gt", "mae_gt", "cosine"])
def test_no_loss_and_no_gradient_at_the_teacher(name):
    """A student with the teacher's logits has loss 0 and gradient 0."""
    outputs = LOGITS.clone().requires_grad_()
    loss = build_loss(name, 2.0)(outputs, LOGITS, TARGETS)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert outputs.grad.abs().max() < 1e-5


def test_an_unknown_loss_is_refused():
    """The error lists the losses that exist."""
    with pytest.raises(InputError, match=r"--loss-type l2 .*mse_gt"):
        build_loss("l2")
