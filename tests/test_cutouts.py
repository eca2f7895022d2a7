"""Labels of LPLD and LPQLD for ImageNet-21K draw a coloured cutout into each view, as PIL drew it for the teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import BATCH, CLASSES, CPU, SIDE, losses, run, tool
from label_folders import epochs_with_cutouts, make_cutouts, make_hald
from PIL import Image, ImageDraw
from view_batches import normalise_on

import train_FKD_parallel
from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.augment import GREY, ColouredCutout
from utils.data.device import DeviceBatches
from utils.data.folders import open_folder
from utils.data.images import load_image
from utils.data.preview import Preview
from utils.data.resident import ResidentBatches
from utils.data.validation import CentreCrops
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels.batch_items import parse_items
from utils.labels.formats import open_labels
from utils.labels.lpqld import FlatWriter
from utils.labels.sre2l import TarWriter
from utils.labels.training_views import TrainingViews
from utils.labels.types import Mix
from utils.system.errors import InputError
from utils.system.safe_load import load_archive

FLAGS = {"reuse_labels": True, "epochs": 2, "mean": 0, "std": 1, "num_classes": CLASSES}


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Write LPLD's labels with cutouts; no test may write to them."""
    folder = tmp_path_factory.mktemp("cutouts") / "labels"
    make_cutouts(folder)
    return folder


def drawn_by_pil(view, cutout):
    """Draw a cutout into a PIL image with whole pixels, as the relabelling code of the authors does."""
    width, height = view.size
    sides = np.array([height, width])
    centre, half = np.rint(cutout[:2].double() * sides), np.rint(cutout[2:4].double() * sides) // 2
    (top, left), (bottom, right) = np.clip(centre - half, 0, sides), np.clip(centre + half, 0, sides)
    ImageDraw.Draw(view).rectangle([left, top, right, bottom], fill=tuple(cutout[4:].int().tolist()))
    return view


def views_by_pil(samples, stored, size=SIDE):
    """Return the cropped views of a batch with their cutouts: uint8 [B, S, S, 3]."""
    views = []
    for slot, index in enumerate(stored.index.tolist()):
        image = load_image(samples[index][0])
        (top, left, height, width), flip = stored.view(slot, (image.height, image.width))
        assert not flip
        view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        views.append(np.asarray(drawn_by_pil(view, stored.augment[slot])))
    return torch.from_numpy(np.stack(views))


@pytest.mark.parametrize("size", [32, 33, 224])
def test_every_cutout_is_the_rectangle_of_pil(size):
    """At each place, in two sizes and any colour, the pixels are PIL's; at 224 px 7 products are below the pixel."""
    half = int(size / 2 + 0.5) / size
    places = torch.arange(size) / size
    rng = np.random.default_rng(0)
    colours = torch.from_numpy(rng.integers(256, size=(size, 3))).float()
    sides = torch.tensor([[half, half], [7 / size, half]])[torch.arange(size) % 2]
    cutouts = torch.cat([places[:, None], places.flip(0)[:, None], sides, colours], dim=1)
    view = rng.integers(256, size=(size, size, 3), dtype=np.uint8)
    pixels = np.stack([np.asarray(drawn_by_pil(Image.fromarray(view), cutout)) for cutout in cutouts[::3]])
    normalise = normalise_on(CPU)
    cut_out = ColouredCutout(IMAGENET_MEAN, IMAGENET_STD, CPU)
    views = normalise(torch.from_numpy(view)[None].expand(len(pixels), -1, -1, -1))
    assert torch.equal(cut_out(views, cutouts[::3]), normalise(torch.from_numpy(pixels)))


def test_a_grey_view_gets_the_grey_value():
    """For a student of one channel, the colour becomes its grey value."""
    cutout = torch.tensor([[0.5, 0.5, 0.5, 0.5, 10, 20, 30]])
    grey = ColouredCutout([0.5], [0.25], CPU)(torch.zeros(1, 1, 8, 8), cutout)
    expected = (sum(w * c for w, c in zip(GREY, (10, 20, 30), strict=True)) / 255 - 0.5) / 0.25
    assert grey.unique().tolist() == pytest.approx(sorted([0, expected]))
    assert (grey != 0).sum() == 25  # rows and columns 2 to 6


@pytest.mark.parametrize("kind", [WorkerBatches, ResidentBatches, DeviceBatches])
def test_each_loader_replays_the_cutouts(kind, labels, tiny):
    """On the CPU, all pixels are PIL's; on a device those of the cutout are, and others differ by at most a level."""
    store, samples = open_labels(labels), open_folder(tiny.train, "--train-dir").samples
    normalise = normalise_on(CPU)
    normalise.augment = ColouredCutout(IMAGENET_MEAN, IMAGENET_STD, CPU)
    dataset = ViewDataset(samples, TrainingViews(store), SIDE)
    batches = list(kind(dataset, range(1), normalise, 0, CPU).epoch(0))
    assert len(batches) == store.batches_per_epoch
    for number, batch in enumerate(batches):
        stored = store.read(0, number)
        expected = normalise(views_by_pil(samples, stored))
        if kind is not DeviceBatches:
            assert torch.equal(batch.images, expected)
            continue
        blank = torch.full_like(expected, torch.nan)
        inside = ~normalise.augment(blank, stored.augment).isnan()
        assert torch.equal(batch.images[inside], expected[inside])
        assert (batch.images - expected).abs().max() <= 1.001 / 255 / min(IMAGENET_STD)


def test_cutouts_come_before_mixing(labels, tiny):
    """If such labels were mixed, the partner's cutout would be pasted with it, and each row keeps its own."""
    store, samples = open_labels(labels), open_folder(tiny.train, "--train-dir").samples
    partner = torch.arange(BATCH).roll(1)
    stored = replace(store.read(0, 0), mix=Mix(partner, 0.5, (3, 4, 30, 20)))
    normalise = normalise_on(CPU)
    normalise.augment = ColouredCutout(IMAGENET_MEAN, IMAGENET_STD, CPU)
    store.read = lambda _epoch, _batch: stored
    batch = next(ResidentBatches(ViewDataset(samples, store, SIDE), range(1), normalise, 0, CPU).epoch(0))
    expected = normalise(views_by_pil(samples, stored))
    expected[:, :, 3:30, 4:20] = expected[partner][:, :, 3:30, 4:20]
    assert torch.equal(batch.images, expected)


def test_training_and_the_picture_of_a_dry_run_show_the_cutouts(labels, tiny, tmp_path, monkeypatch, small_student):
    """views.png shows them, and a run on other colours ends otherwise."""
    shown = []
    monkeypatch.setattr(Preview, "draw", lambda preview, *_: shown.append(preview))  # its picture is tested apart
    flags = FLAGS | {"fkd_path": labels}
    dry = run(train_FKD_parallel, *tiny.flags(tmp_path / "dry", dry_run=True, **flags))
    assert dry.code == 0, dry.err
    assert "lpld, unmixed with coloured cutouts" in dry.out
    samples = open_folder(tiny.train, "--train-dir").samples
    store = open_labels(labels)
    views, preview = TrainingViews(store, "sampled", 42, 2), shown[0]
    for image, (epoch, batch, row) in zip(preview.images, preview.places, strict=True):
        assert torch.equal(image, views_by_pil(samples, store.read(*views.place(epoch, batch)))[row])
    writer = FlatWriter(tmp_path / "other")
    for epoch in range(store.epochs):
        batches = [store.read(epoch, batch) for batch in range(store.batches(epoch))]
        swapped = torch.tensor([0, 1, 2, 3, 6, 4, 5])
        writer.write(epoch, [replace(one, augment=one.augment[:, swapped]) for one in batches])
    writer.finish()
    runs = [tiny.train_run(tmp_path / path.name, **flags | {"fkd_path": path}) for path in (labels, writer.path)]
    assert losses(runs[0]) != losses(runs[1])


def test_epoch_folders_may_hold_cutouts_too(tmp_path):
    """Six items in epoch folders are read, packed and unpacked with the same bits."""
    writer = TarWriter(tmp_path / "epochs", with_index=False)
    for epoch, batches in enumerate(epochs_with_cutouts()):
        writer.write(epoch, batches)
    store = open_labels(tmp_path / "epochs")
    assert (store.dialect, store.has_cutouts, store.mix_type) == ("sre2l", True, "none")
    assert tool("pack", tmp_path / "epochs", tmp_path / "packed") == tool("verify", tmp_path / "packed") == 0
    assert tool("unpack", tmp_path / "packed", tmp_path / "again") == 0
    packed = open_labels(tmp_path / "packed")
    for epoch in range(2):
        for batch in range(3):
            assert torch.equal(packed.read(epoch, batch).augment, store.read(epoch, batch).augment)
            name = f"epoch_{epoch}/batch_{batch}.tar"
            first, second = (load_archive(tmp_path / folder / name) for folder in ("epochs", "again"))
            assert second[1].shape[1:] == (7,)
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, torch.Tensor))


def test_class_ids_of_10450_classes(tmp_path):
    """All logits of ImageNet-21K-P are read, and the ids of the largest are kept when they are packed."""
    batches = [one for one in epochs_with_cutouts()[0] if len(one) == BATCH]
    logits = torch.randn(BATCH, 10_450, generator=torch.Generator().manual_seed(1))
    logits[0, 10_449] = 9
    writer = FlatWriter(tmp_path / "flat")
    writer.write(0, [replace(one, logits=logits.half()) for one in batches])
    writer.finish()
    assert open_labels(tmp_path / "flat").num_classes == 10_450
    assert tool("pack", tmp_path / "flat", tmp_path / "top", "--keep-topk", 100) == 0
    kept = open_labels(tmp_path / "top").read(0, 0).logits
    assert kept.classes[0].max() == 10_449
    assert open_labels(tmp_path / "top").num_classes == 10_450


def cut(**changed):
    """Return six items of a batch of three rows with cutouts; `changed` replaces values of the second row."""
    coords, cutouts = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3), torch.tensor([[0.5, 0.5, 0.5, 0.5, 1, 2, 3]] * 3)
    for column, value in changed.items():
        cutouts[1, int(column[1:])] = value
    return [coords, cutouts, None, None, None, torch.zeros(3, 4)]


@pytest.mark.parametrize("changed", [{"c0": -0.1}, {"c1": 1.1}, {"c2": float("nan")}, {"c4": 256}, {"c6": -1}])
def test_impossible_cutouts_are_refused(changed):
    """Places are shares of the view, and colours lie between 0 and 255."""
    assert parse_items(cut(), "FILE").augment.shape == (3, 7)
    with pytest.raises(InputError, match="a cutout is not four shares"):
        parse_items(cut(**changed), "FILE")


def test_cutouts_of_another_shape_are_refused():
    """A second item of two dimensions must hold seven numbers for each row."""
    items = cut()
    for wrong in (items[1][:, :6], items[1].long(), items[1][:2]):
        with pytest.raises(InputError, match=r"cutout|coords"):
            parse_items([items[0], wrong, *items[2:]], "FILE")


def test_smoothed_logits_in_a_run(labels, tiny, tmp_path, small_student):
    """In kl, smoothing by 0.2 is a teacher at 5 / 4 of the student's temperature; without effect, it is refused."""
    flags = FLAGS | {"fkd_path": labels}
    smoothed = tiny.train_run(tmp_path / "smoothed", logit_smoothing=0.2, temperature=4, **flags)
    warmer = tiny.train_run(tmp_path / "warmer", temperature=5, student_temperature=4, **flags)
    plain = tiny.train_run(tmp_path / "plain", temperature=4, **flags)
    assert losses(smoothed) == pytest.approx(losses(warmer), rel=1e-4)
    assert losses(plain) != pytest.approx(losses(warmer), rel=1e-3)
    make_hald(tmp_path / "hald")
    for name, more in (("loss-type ce", {"loss_type": "ce"}), ("probabilities", {"fkd_path": tmp_path / "hald"})):
        words = flags | {"logit_smoothing": 0.2, "num_classes": None} | more
        done = run(train_FKD_parallel, *tiny.flags(tmp_path / "refused", **words))
        assert done.code == 2
        assert "--logit-smoothing 0.2" in done.err
        assert name in done.err


def test_validation_images_may_be_squashed(tmp_path, tiny, small_student):
    """--val-resize squash resizes both sides of an image that is not square, and crops nothing."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(30, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    shown = CentreCrops([(str(tmp_path / "image.png"), 0)], 32, "squash")[0][0]
    assert np.array_equal(shown.numpy(), expected)
    assert not np.array_equal(CentreCrops([(str(tmp_path / "image.png"), 0)], 32, 32)[0][0].numpy(), expected)
    one, other = (tiny.train_run(tmp_path / f"{size}", epochs=1, val_resize=size) for size in ("squash", SIDE))
    assert one.summary["args"]["val_resize"] == "squash"
    assert one.rows[-1]["val_loss"] != other.rows[-1]["val_loss"]
    assert one.rows[-1]["train_loss"] == other.rows[-1]["train_loss"]
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "squash", epochs=1), "--resume")
    assert "--val-resize was squash" in done.err
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "x", val_resize="squeeze"))
    assert (done.code, "give a number of pixels, or squash" in done.err) == (2, True)
