"""Source images are cut into strips, or changed by RandAugment, before the crop; every loader and run sees the same."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import CPU, make_images, read_run, run, same_weights, stop_and_resume
from PIL import Image
from view_batches import SIZES, batches_of, normalise_on

import train_KD_parallel
from utils.config import IMAGENET_STD, Findings, KDConfig
from utils.data.device import DeviceBatches
from utils.data.preview import Preview
from utils.data.rand_augment import RandAugment, posterize
from utils.data.replay import replay_view, resize_views, shuffle_patches
from utils.data.resident import ResidentBatches
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels.training_views import keep_rows
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run.image_labels import label_views

RAND = "rand-m6-n2-mstd1.0"
PLAIN = {"fkd_path": None, "loss_type": "ce", "min_scale_crops": 0.5, "mix_type": "cutmix", "epochs": 2}

pytestmark = pytest.mark.usefixtures("small_student")


def views_of(num_strips=1, change=None, mix_type="cutmix", size=32, batch_size=3):
    """Return views of as many images as `uneven_images` has."""
    policy = ViewPolicy(3, size, 0.3, 1.0, mix_type, 0.8, 1.0)
    return DrawnViews(policy, len(SIZES), batch_size, num_strips=num_strips, change=change)


def coordinates(height, width):
    """Return an image whose pixel (y, x) has the values y and x, and 0 in the third channel."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, 0 * y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("strips", [2, 3, 5])
@pytest.mark.parametrize("size", [(12, 30), (17, 23), (5, 5)])
def test_pixels_move_in_whole_strips(size, strips, floats):
    """Strip k of the result is the strip that the order names; the last strip has the pixels that are left over."""
    orders = views_of(strips).read(0, 0).strips[0]
    image = coordinates(*size)
    given = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() if floats else image
    moved = shuffle_patches(given, orders)
    pixels = moved.permute(1, 2, 0).numpy() if floats else np.array(moved)
    assert isinstance(moved, torch.Tensor) == floats
    for axis, channel, order in ((0, 0, orders[1]), (1, 1, orders[0])):
        side, length = size[axis], size[axis] // strips
        ranges = [range(k * length, side if k == strips - 1 else (k + 1) * length) for k in range(strips)]
        wanted = [place for number in order.tolist() for place in ranges[number]]
        assert (pixels[..., channel] == np.expand_dims(wanted, 1 - axis)).all()
    identity = torch.arange(strips).expand(2, -1)
    assert np.array_equal(np.array(shuffle_patches(image, identity)), np.array(image))
    assert np.array_equal(np.array(shuffle_patches(image, torch.zeros(2, 1, dtype=torch.int64))), np.array(image))


def test_every_arrangement_is_equally_likely():
    """Columns and rows are shuffled on their own, so that a quarter of an image ends in each of four places."""
    drawn = torch.cat([views_of(2, batch_size=7).read(epoch, 0).strips for epoch in range(600)])
    counts = Counter(map(str, drawn.flatten(1).tolist()))
    assert len(counts) == 4
    # 4200 draws: the deviation of a count is 28
    assert all(abs(count - 1050) < 5 * 28 for count in counts.values())
    assert len(Counter(map(str, views_of(3, batch_size=7).read(0, 0).strips.tolist()))) > 3


def test_strips_have_a_stream_of_their_own():
    """Crops, mixes and seeds are those of views without strips; strips follow from epoch, batch and row alone."""
    both, plain = views_of(2, RandAugment(RAND)), views_of()
    for epoch, batch in ((0, 0), (0, 1), (4, 2)):
        one, other = both.read(epoch, batch), plain.read(epoch, batch)
        assert np.array_equal(one.draws, other.draws)
        assert torch.equal(one.mix.partner, other.mix.partner)
        assert one.mix[1:] == other.mix[1:]
        assert torch.equal(one.strips, views_of(2).read(epoch, batch).strips)
        assert torch.equal(one.seeds, views_of(1, RandAugment(RAND)).read(epoch, batch).seeds)
        assert (other.strips, other.seeds, other.change) == (None, None, None)
    # order of two crop numbers in the first row: strips from the same stream would follow it
    crops = [both.read(epoch, 0).draws[0, :2].argsort().tolist() for epoch in range(200)]
    strips = [both.read(epoch, 0).strips[0, 0].tolist() for epoch in range(200)]
    assert 60 < sum(one == other for one, other in zip(crops, strips, strict=True)) < 140
    seeds = torch.cat([both.read(epoch, batch).seeds for epoch in range(5) for batch in range(3)])
    assert len(seeds.unique()) == len(seeds)


def test_a_rank_keeps_the_strips_and_seeds_of_its_rows():
    drawn = views_of(2, RandAugment(RAND), batch_size=7).read(0, 0)
    rows = torch.tensor([1, 4])
    kept = keep_rows(drawn, rows)
    wanted = torch.cat([rows, drawn.mix.partner[rows]])[: len(kept)]
    assert torch.equal(kept.strips[:2], drawn.strips[rows])
    assert torch.equal(kept.seeds[:2], drawn.seeds[rows])
    assert len(kept.strips) == len(kept.seeds) == len(kept.index) == len(wanted.unique())


@pytest.mark.parametrize(("strips", "mix_type"), [(2, "none"), (2, "cutmix"), (3, "mixup")])
def test_loaders_show_the_same_strips(uneven_images, strips, mix_type):
    """Worker and resident batches are equal; those of a device differ from PIL by one level at most."""
    given = [
        batches_of(kind, ViewDataset(uneven_images.samples, views_of(strips, mix_type=mix_type), 32))
        for kind in (WorkerBatches, ResidentBatches, DeviceBatches)
    ]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    for workers, resident, device in zip(*given, strict=True):
        assert torch.equal(workers.images, resident.images)
        assert ((workers.images - device.images) * std * 255).abs().max() <= 1.001
    whole = batches_of(ResidentBatches, ViewDataset(uneven_images.samples, views_of(mix_type=mix_type), 32))
    assert not any(torch.equal(one.images, other.images) for one, other in zip(given[1], whole, strict=True))


def test_strips_of_floats_on_a_device():
    """Padded floating-point images are cut by their own sizes."""
    sizes = torch.tensor([[17, 23], [24, 11], [24, 24]])
    images = [torch.rand(3, *size) for size in sizes.tolist()]
    padded = torch.zeros(3, 24, 3, 24)
    for place, image in zip(padded, images, strict=True):
        place[: image.shape[1], :, : image.shape[2]] = image.transpose(0, 1)
    orders = views_of(3).read(0, 0).strips
    boxes = torch.tensor([[2, 3, 14, 15], [0, 0, 24, 11], [5, 7, 9, 13]])
    flips = torch.tensor([0, 1, 1])
    found = resize_views(padded, *boxes.unbind(1), flips, 16, strips=(sizes, orders))
    for view, image, order, box, flip in zip(found, images, orders, boxes.tolist(), flips, strict=True):
        wanted = replay_view(shuffle_patches(image, order), box, bool(flip), 16)
        torch.testing.assert_close(view, wanted, atol=1e-5, rtol=1e-5)


def test_the_preview_shows_strips(uneven_images):
    """The picture of --dry-run has the images that training gets."""
    dataset = ViewDataset(uneven_images.samples, views_of(2, batch_size=7), 32)
    normalise = normalise_on(CPU)
    (batch,) = batches_of(ResidentBatches, dataset, epochs=1)
    made = Preview(dataset, range(1), normalise)
    assert [row for *_, row in made.places] == list(range(7))
    assert torch.equal(made.images, normalise.visible(batch.images))


def test_labels_of_images_keep_strips_and_changes():
    config = KDConfig.parse(["--train-dir", "a", "--val-dir", "b", "--loss-type", "ce", "--batch-size", "3"])
    source = views_of(2, RandAugment(RAND))
    labelled, _ = label_views(config, Findings(input_size=32), source, [("", 0)] * len(SIZES), 2)
    drawn, plain = labelled.read(1, 1), source.read(1, 1)
    assert drawn.logits is not None
    assert torch.equal(drawn.strips, plain.strips)
    assert torch.equal(drawn.seeds, plain.seeds)


def test_rand_augment_follows_its_seed_alone():
    """The global random states neither change the image nor are changed."""
    change, image = RandAugment(RAND), coordinates(40, 50)
    before, numpy_before = random.getstate(), np.random.get_state()
    first = [change(image, seed).tobytes() for seed in range(20)]
    assert random.getstate() == before
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), numpy_before, strict=True))
    random.random(), random.gauss(0, 1), np.random.random(3)
    assert [change(image, seed).tobytes() for seed in range(20)] == first
    assert len(set(first)) > 10
    assert sum(one == image.tobytes() for one in first) < 15


def test_rand_augment_is_that_of_timm_with_the_settings_of_delt():
    change = RandAugment("rand-m6-n2-mstd1.0")
    assert change.transform.num_layers == 2
    for operation in change.transform.ops:
        assert (operation.magnitude, operation.magnitude_std, operation.prob) == (6, 1.0, 0.5)
        assert operation.hparams["translate_const"] == 117
        assert operation.kwargs["fillcolor"] == (124, 116, 104)


def test_no_magnitude_ends_a_run():
    """timm posterizes to 0 bits at some magnitudes, of which new versions of Pillow raise an error."""
    image = coordinates(40, 50)
    for text in ("rand-m0-n1-p1", "rand-m30-n1-p1-mmax30-inc1", "rand-m30-n1-p1-mmax30"):
        change = RandAugment(text)
        results = {operation.name: operation(image) for operation in change.transform.ops}
        (name,) = (name for name in results if name.startswith("Posterize"))
        assert np.array(results[name]).any() == (text == "rand-m30-n1-p1-mmax30")
    assert np.array_equal(np.array(posterize(image, 3)), np.array(image) // 32 * 32)
    assert np.array_equal(np.array(posterize(image, 9)), np.array(image))


def test_grey_images_stay_grey():
    grey = coordinates(40, 50).getchannel(1)
    changed = [RandAugment("rand-m9-n3-p1")(grey, seed) for seed in range(10)]
    assert {(one.mode, one.size) for one in changed} == {("L", (50, 40))}
    assert any(one.tobytes() != grey.tobytes() for one in changed)


def test_rand_augment_comes_before_strips_and_crop(uneven_images):
    dataset = ViewDataset(uneven_images.samples, views_of(2, RandAugment(RAND), mix_type="none", batch_size=7), 32)
    dataset.load_batch_config(0)
    labels = dataset.labels
    for slot, (view, *_) in enumerate(dataset.__getitems__([])):
        image = Image.open(uneven_images.samples[int(labels.index[slot])][0]).convert("RGB")
        image = RandAugment(RAND)(image, int(labels.seeds[slot]))
        box, flip = labels.view(slot, (image.height, image.width))
        assert torch.equal(view, replay_view(shuffle_patches(image, labels.strips[slot]), box, flip, 32))


@pytest.mark.parametrize("flags", [{"shuffle_patches": 2}, {"auto_augment": RAND}])
def test_a_run_resumed_in_mid_epoch_sees_the_same_images(flags, tiny, tmp_path):
    """Weights are equal to the last bit, with other numbers of worker processes as well."""
    plain = tiny.flags(tmp_path / "plain", **PLAIN)
    words = tiny.flags(tmp_path / "whole", **PLAIN | flags)
    for one in (plain, words):
        result = run(train_KD_parallel, *one)
        assert result.code == 0, result.err
    whole = read_run(tmp_path / "whole").weights()
    resumed = tiny.flags(tmp_path / "again", **PLAIN | flags | {"loader": "workers", "workers": 2})
    again = stop_and_resume(resumed, tmp_path / "again", [2, 2], train_KD_parallel)
    assert same_weights(whole, again.weights())
    assert not same_weights(whole, read_run(tmp_path / "plain").weights())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--auto-augment rand-m6-x3", "'x3' in 'rand-m6-x3' is no setting of RandAugment; write rand, then"),
        ("--auto-augment augmix-m5", "'augmix' in 'augmix-m5' is no setting of RandAugment"),
        ("--auto-augment rand-m6.5", "'m6.5' in"),
        ("--auto-augment rand-inc0", "'inc0' in"),
        ("--auto-augment rand-p2", "'p2' in"),
        ("--auto-augment rand-tother", "'tother' in"),
        ("--auto-augment rand-", "'' in 'rand-'"),
        ("--auto-augment rand-m6 --loader resident", "leave out --loader resident"),
        ("--shuffle-patches 37", "--shuffle-patches 37 cuts each image into 37 strips along each side, but"),
        ("--shuffle-patches 0", "0 must be at least 1"),
        ("--eval-from 2", "--eval-from 2 is not reached, since the last of --epochs 2 is 1; lower it"),
        ("--val-ipc 0", "0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(flags, message, tiny, tmp_path):
    result = run(train_KD_parallel, *tiny.flags(tmp_path / "run", **PLAIN), *flags.split())
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_cells_are_at_least_a_pixel(tiny, tmp_path):
    """More cells than pixels would lie outside the image."""
    flags = tiny.flags(tmp_path / "run", **PLAIN | {"min_scale_crops": None, "augment": "none", "factor_crop": 37})
    result = run(train_KD_parallel, *flags)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "--factor-crop 37 cuts each image into 37 cells along each side, but" in result.err


@pytest.mark.parametrize(
    "text", [RAND, "rand", "rand-m9-n3-p0.5-mmax20-inc1-tweights", "rand-mstd101-t3a", "rand-t3aw"]
)
def test_strings_of_timm_are_taken(text):
    config = KDConfig.parse(["--train-dir", "a", "--val-dir", "b", "--auto-augment", text])
    assert (config.auto_augment, config.loader) == (text, "workers")
    RandAugment(text)(coordinates(40, 50), 1)


def test_floats_are_not_changed_by_rand_augment(tiny, tmp_path):
    (tmp_path / "floats").mkdir()
    torch.save(torch.rand(6, 3, 32, 32), tmp_path / "floats" / "images_best.pt")
    torch.save(torch.arange(6) % 3, tmp_path / "floats" / "labels_best.pt")
    words = tiny.flags(tmp_path / "run", **PLAIN | {"train_dir": tmp_path / "floats", "class_map": "sorted"})
    result = run(train_KD_parallel, *words, "--auto-augment", RAND)
    assert result.code == 2
    assert "changes images of 8 bits, but --train-dir" in result.err


def test_rand_augment_needs_workers_and_says_so(tiny, tmp_path):
    result = run(train_KD_parallel, *tiny.flags(tmp_path / "run", **PLAIN), "--auto-augment", RAND, "--dry-run")
    assert result.code == 0, result.err
    assert "loader  workers: --auto-augment changes each image anew" in result.out


def evaluated(done):
    """Return the epochs that were evaluated."""
    return [int(row["epoch"]) for row in done.rows if row["val_top1"] is not None]


@pytest.mark.parametrize(
    ("since", "every", "epochs"), [(0, 2, [0, 2, 4, 5]), (1, 2, [1, 3, 5]), (3, 10, [3, 5]), (4, 1, [4, 5])]
)
def test_evaluated_are_epochs_from_a_certain_one_on(since, every, epochs, tiny, tmp_path):
    flags = PLAIN | {"epochs": 6, "eval_from": since, "eval_every": every}
    assert run(train_KD_parallel, *tiny.flags(tmp_path / "run", **flags)).code == 0
    assert evaluated(read_run(tmp_path / "run")) == epochs


def test_the_best_of_late_evaluations_is_marked(tiny, tmp_path):
    """The headline is the last epoch in any case. On --resume, the first evaluated epoch stays what it was."""
    words = tiny.flags(tmp_path / "run", **PLAIN | {"epochs": 3, "eval_from": 1})
    result = run(train_KD_parallel, *words)
    assert "picked on the validation set, among the evaluations from epoch 2 on)" in result.out  # counted from 1
    done = read_run(tmp_path / "run")
    assert done.summary["last"]["epoch"] == 2
    assert done.summary["best"]["epoch"] in (1, 2)
    assert done.summary["best"]["note"] == "picked on the validation set, among the evaluations from epoch 1 on"
    changed = tiny.flags(tmp_path / "run", **PLAIN | {"epochs": 3, "eval_from": 0})
    refused = run(train_KD_parallel, *changed, "--resume")
    assert refused.code == 2
    assert "eval" in refused.err


def test_validation_on_the_first_images_of_each_class(tiny, tmp_path):
    """They are the first by name, and the digest of the validation images is theirs."""
    few = make_images(tmp_path / "few", per_class=2, seed=1)
    for path in few.glob("*/1.png"):
        path.unlink()
    digests = {}
    for name, more in (("first", {"val_ipc": 1}), ("few", {"val_dir": few}), ("all", {})):
        assert run(train_KD_parallel, *tiny.flags(tmp_path / name, **PLAIN | more)).code == 0
        validation = read_run(tmp_path / name).summary["validation"]
        digests[name] = validation["digest"], validation["number"]
    assert digests["first"] == digests["few"] != digests["all"]
    assert digests["first"][1] == 3
