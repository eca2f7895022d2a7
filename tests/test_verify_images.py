"""`python -m utils.labels verify --images … --arch …`: right labels fit in every form, faults are named."""

import contextlib
import copy
import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Result, relabel_flags, run
from PIL import Image
from torch import nn

import relabel_FKD
from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.folders import open_folder
from utils.labels import command
from utils.labels.formats import open_labels
from utils.labels.hald import HaldWriter
from utils.labels.lpqld import FlatWriter
from utils.labels.packed import PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import make_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.types import TopK
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run import label_hypotheses, teacher_check
from utils.run.label_hypotheses import as_numbers
from utils.run.teacher_check import unchecked
from utils.training import teachers

CLASSES, PER_CLASS, BATCH, SIDE = 12, 4, 16, 32
HEIGHT, WIDTH = 40, 48
NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def draw_images(per_class, seed):
    """Draw images with a hue and a stripe direction per class, and individual detail: uint8 [C, n, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    images = np.zeros((CLASSES, per_class, HEIGHT, WIDTH, 3), np.uint8)
    for label in range(CLASSES):
        hue = 0.5 + 0.5 * np.cos(2 * math.pi * (label / CLASSES + np.array([0, 1 / 3, 2 / 3])))
        for n in range(per_class):
            angle = math.pi * label * 5 / CLASSES + rng.normal(0, 0.1)
            stripes = np.cos((x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(0.5, 0.9) + rng.uniform(0, 6))
            blobs = np.array(Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT)))
            mixed = 90 * hue * (1.2 + stripes[..., None]) + 0.4 * blobs + rng.normal(0, 8, blobs.shape)
            images[label, n] = mixed.clip(0, 255)
    return images


def write_images(folder, images, name="new{}"):
    """Write images [C, n, H, W, 3] as a folder of class folders."""
    for label, group in enumerate(images):
        (folder / name.format(label)).mkdir(parents=True)
        for n, pixels in enumerate(group):
            Image.fromarray(pixels).save(folder / name.format(label) / f"{n}.png")
    return folder


def network(seed):
    """Return a small classifier with batch normalisation."""
    torch.manual_seed(seed)
    layers, channels = [], 3
    for width in (16, 32):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, CLASSES))


def train(seed, images):
    """Train a network on random crops of images [C, n, H, W, 3]; return its state dict."""
    model, rng = network(seed).train(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    pixels = torch.from_numpy(images).flatten(0, 1)
    targets = torch.arange(CLASSES).repeat_interleave(images.shape[1])
    for _ in range(40):
        rows = torch.from_numpy(rng.permutation(len(pixels))[:64])
        top, left = int(rng.integers(HEIGHT - SIDE + 1)), int(rng.integers(WIDTH - SIDE + 1))
        crops = pixels[rows, top : top + SIDE, left : left + SIDE]
        crops = crops.flip(2) if rng.random() < 0.5 else crops
        loss = nn.functional.cross_entropy(model(normalised(crops, IMAGENET_MEAN, IMAGENET_STD)), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def normalised(views, mean, std):
    """Normalise uint8 [B, S, S, 3] to float32 [B, 3, S, S]."""
    return ((views.float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


class Setting:
    """A folder of images, and files of two teachers that were trained on such images."""

    def __init__(self, root):
        many = draw_images(20, 0)
        self.root, self.pixels = root, many[:, :PER_CLASS]
        self.images = write_images(root / "images", self.pixels)
        self.files = {}
        for seed in (1, 2):
            self.files[seed] = root / f"teacher{seed}.pth"
            torch.save(train(seed, many), self.files[seed])
        self.samples = open_folder(self.images, "--data").samples

    def teacher(self, seed=1):
        model = network(0)
        model.load_state_dict(torch.load(self.files[seed], weights_only=True))
        return model.eval()

    def views(self, size=SIDE, mix="cutmix", epochs=2, seed=42):
        """Return views of `epochs` epochs without labels: lists of batches."""
        drawn = DrawnViews(ViewPolicy(seed, size, 0.2, 1.0, mix, 0.8, 1.0), len(self.samples), BATCH)
        batches = [[drawn.read(epoch, batch) for batch in range(drawn.batches_per_epoch)] for epoch in range(epochs)]
        return [[one.labelled(None, [(HEIGHT, WIDTH)] * len(one)) for one in epoch] for epoch in batches]

    def labels(self, size=SIDE, mix="cutmix", epochs=2, seed=42, **how):
        """Return labelled views: lists of `BatchLabels`; `how` as for `answered`."""
        return [[self.answered(one, size, **how) for one in epoch] for epoch in self.views(size, mix, epochs, seed)]

    @torch.no_grad()
    def answered(
        self,
        labels,
        size,
        teacher=None,
        samples=None,
        norm=(IMAGENET_MEAN, IMAGENET_STD),
        flip="after",
        swap=False,
        antialias=True,
        halves=False,
        bf16=False,
    ):
        """Show a batch's views to the teacher, as the arguments say, and store its answers."""
        views = []
        for slot, number in enumerate(labels.index.tolist()):
            image = Image.open((samples or self.samples)[number][0]).convert("RGB")
            (top, left, height, width), flipped = labels.view(slot, (image.height, image.width))
            if flipped and flip == "before":
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop = torch.from_numpy(np.array(image.crop((left, top, left + width, top + height)))).permute(2, 0, 1)
            view = nn.functional.interpolate(crop[None].float(), (size, size), mode="bilinear", antialias=antialias)[0]
            views.append(view.flip(2) if flipped and flip == "after" else view)
        views = torch.stack(views)
        if labels.augment is not None:
            for view, (row, column, height, width, *colour) in zip(views, labels.augment.tolist(), strict=True):
                (top, left), (down, right) = (
                    (round(n * size) for n in (row, column)),
                    (int(n * size) // 2 for n in (height, width)),
                )
                view[:, max(top - down, 0) : top + down + 1, max(left - right, 0) : left + right + 1] = torch.tensor(
                    colour
                )[:, None, None]
        if labels.mix.box is not None:
            y1, x1, y2, x2 = labels.mix.box
            if swap:
                x1, y1, x2, y2 = y1, x1, y2, x2
            mixed = views.clone()
            mixed[:, :, y1:y2, x1:x2] = views[labels.mix.partner, :, y1:y2, x1:x2]
            views = mixed
        elif labels.mix.lam is not None:
            views = labels.mix.lam * views + (1 - labels.mix.lam) * views[labels.mix.partner]
        images = normalised(views.permute(0, 2, 3, 1), *norm)
        model = copy.deepcopy(teacher or self.teacher())
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if halves:
                half = len(images) // 2
                answers = torch.cat([model.train()(images[:half]), model(images[half:])])
            else:
                answers = model(images)
        return replace(labels, logits=answers.float())

    def packed(self, folder, batches, codec=None, **changed):
        """Write packed labels."""
        shape = len(self.samples), CLASSES, BATCH, len(batches), batches[0][0].mix.type
        codec = codec or Codec(16)
        writer = PackedWriter(folder, make_manifest(codec, *shape, True, {}, None, **changed))
        for epoch, one in enumerate(batches):
            writer.write(epoch, one)
        return folder

    def verify(self, folder, *words, images=None, seed=1, size=SIDE):
        """Ask teacher `seed`; return the `Result`."""
        return verify(
            *(folder, "--images", images or self.images, "--arch", "cnn", "--checkpoint", self.files[seed]),
            *(["--input-size", size] if size else []),
            *words,
        )


def verify(*words):
    """Run `python -m utils.labels verify` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.main(["verify", *map(str, words)], teacher_check.run)
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Make images and teachers; no test may write to them."""
    return Setting(tmp_path_factory.mktemp("verify"))


@pytest.fixture(autouse=True)
def _small_teacher(monkeypatch):
    """Make `--arch cnn` the small network of this file."""

    def build(name, checkpoint, *_, **__):
        model = network(0)
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
        return model.eval().requires_grad_(False)

    monkeypatch.setattr(teachers, "build_teacher", build)  # a network that these tests can train in seconds
    monkeypatch.setattr(label_hypotheses, "SIZES", (32, 48, 64))  # larger ones are slow


def fits(result):
    """Assert that the labels fit the teacher; return the sentence."""
    assert result.code == 0, result.err
    assert result.out.startswith("these labels are this teacher's answers to these images"), result.out
    assert result.out.count("\n") == 1
    return result.out


def refused(result, *words):
    """Assert that the labels are refused with a reason that contains `words`."""
    assert result.code == 2, result.out
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err, result.err


@pytest.mark.parametrize("codec", [Codec(32), Codec(16), Codec(8), Codec(4), Codec(16, 3), Codec(4, 4)], ids=str)
def test_packed_labels_fit(codec, setting, tmp_path):
    """Right labels fit with any number of bits, with all classes or the largest."""
    said = fits(setting.verify(setting.packed(tmp_path / "labels", setting.labels(), codec)))
    assert "largest difference" in said
    assert "rounding" not in said


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_tar_labels_fit(mix, setting, tmp_path):
    """Right labels fit with an index, and without one in the order of --fkd-seed."""
    batches = setting.labels(mix=mix)
    for items in (7, 6):
        writer = TarWriter(tmp_path / str(items), torch.float16, with_index=items == 7)
        for epoch, one in enumerate(batches):
            writer.write(epoch, one)
        fits(setting.verify(tmp_path / str(items)))


def test_views_are_shown_with_their_cutouts(setting, tmp_path):
    """The teacher of LPLD's labels for ImageNet-21K saw a coloured cutout in each view."""
    rng, writer = np.random.default_rng(0), FlatWriter(tmp_path / "labels")
    for epoch, batches in enumerate(setting.views(mix="none")):
        for one in batches:
            numbers = [rng.integers(SIDE, size=(len(one), 2)) / SIDE, np.full((len(one), 2), 0.5)]
            cutouts = torch.from_numpy(np.concatenate([*numbers, rng.integers(256, size=(len(one), 3))], axis=1))
            unflipped = replace(one, flip=torch.zeros(len(one), dtype=torch.bool), augment=cutouts.float())
            writer.write(epoch, [setting.answered(unflipped, SIDE)])
    writer.finish()
    fits(setting.verify(tmp_path / "labels"))


def test_the_size_of_tar_labels_follows_from_boxes(setting, tmp_path):
    """Tar labels do not state a size, but their cutmix boxes reach its edge."""
    writer = TarWriter(tmp_path / "labels", torch.float16)
    for epoch, one in enumerate(setting.labels(epochs=4)):
        writer.write(epoch, one)
    fits(setting.verify(tmp_path / "labels", size=None))


def test_labels_of_other_projects_fit(setting, tmp_path):
    """Flat folders with all or the largest logits fit; so do probabilities, and another temperature is named."""
    flat, top = FlatWriter(tmp_path / "lpld"), FlatWriter(tmp_path / "lpqld")
    hald, hot = HaldWriter(tmp_path / "hald"), HaldWriter(tmp_path / "hot")
    for epoch, batches in enumerate(setting.labels()):
        flat.write(epoch, batches)
        top.write(epoch, [replace(one, logits=TopK(*one.logits.topk(3, dim=1), None)) for one in batches])
        hald.write(epoch, [replace(one, logits=(one.logits / 20).log_softmax(dim=1)) for one in batches])
        hot.write(epoch, [replace(one, logits=(one.logits / 2).log_softmax(dim=1)) for one in batches])
    for writer in (flat, top, hald, hot):
        writer.finish()
    for name in ("lpld", "lpqld", "hald"):
        fits(setting.verify(tmp_path / name))
    refused(setting.verify(tmp_path / "hald", seed=2), "not this teacher's answers", "another teacher's")
    fits(setting.verify(tmp_path / "hot", "--temperature", 2))
    refused(setting.verify(tmp_path / "hot"), "--temperature 2")


@pytest.mark.parametrize("how", [{"bf16": True}, {"antialias": False}], ids=str)
def test_other_arithmetic_and_resize_fit(how, setting, tmp_path):
    """Labels made with other arithmetic or another resize still belong to the teacher."""
    fits(setting.verify(setting.packed(tmp_path / "labels", setting.labels(**how))))


def test_a_teacher_in_train_mode_fits(setting, tmp_path):
    """BSSL runs its teacher in train mode on halves of the batch."""
    said = fits(setting.verify(setting.packed(tmp_path / "labels", setting.labels(halves=True))))
    assert "in train mode, on halves of each batch (BSSL of FADRM and CV-DD): largest difference 0.0" in said


@pytest.mark.parametrize("codec", [Codec(16), Codec(4, 4)], ids=str)
def test_another_teacher_or_other_images_are_refused(codec, setting, tmp_path):
    """Another teacher of the same quality, other images of the same classes, and noise are refused."""
    labels = setting.packed(tmp_path / "labels", setting.labels(), codec)
    nothing = "no other image order, class order, input size or normalisation"
    refused(setting.verify(labels, seed=2), nothing)
    other = write_images(tmp_path / "other", draw_images(PER_CLASS, 9))
    refused(setting.verify(labels, images=other), nothing)
    noise = np.random.default_rng(0).integers(0, 256, setting.pixels.shape, dtype=np.uint8)
    refused(setting.verify(labels, images=write_images(tmp_path / "noise", noise)), nothing)


def test_shuffled_images_are_named(setting, tmp_path):
    """Images are shuffled within classes, over all, or by class folders; the error names the image that a row fits."""
    labels = setting.packed(tmp_path / "labels", setting.labels())
    swapped = setting.pixels.copy()
    swapped[[3, 5]] = swapped[[5, 3]]
    rng = np.random.default_rng(0)
    flat = setting.pixels.reshape(-1, HEIGHT, WIDTH, 3)
    cases = {
        "within their classes": setting.pixels[:, [1, 0, 3, 2]],
        "class folders": swapped,
        "the images are in another order": flat[rng.permutation(len(flat))].reshape(setting.pixels.shape),
    }
    for number, (how, pixels) in enumerate(cases.items()):
        images = write_images(tmp_path / str(number), pixels)
        refused(setting.verify(labels, images=images), how, " answers image ", "and not image")


def test_one_replaced_image_is_found(setting, tmp_path):
    """The other images fit."""
    labels = setting.packed(tmp_path / "labels", setting.labels(mix="none"))
    pixels = setting.pixels.copy()
    pixels[2, 1] = draw_images(2, 5)[2, 1]
    refused(setting.verify(labels, images=write_images(tmp_path / "images", pixels)), "rows do not fit", "new2/1.png")


def test_a_wrong_order_of_images_is_named(setting, tmp_path):
    """Another seed, names sorted as numbers, and numbers that are off by one are told apart."""
    writer = TarWriter(tmp_path / "sre2l", with_index=False)
    for epoch, batches in enumerate(setting.labels(seed=37)):
        writer.write(epoch, batches)
    refused(setting.verify(tmp_path / "sre2l"), "in the image order of --fkd-seed 37", "give --fkd-seed 37")
    fits(setting.verify(tmp_path / "sre2l", "--fkd-seed", 37))

    numeric = sorted(setting.samples, key=lambda sample: as_numbers(sample[0]))
    assert numeric != setting.samples
    labels = setting.packed(tmp_path / "numeric", setting.labels(samples=numeric))
    refused(setting.verify(labels), "names of class folders", "pad the numbers")

    shifted = [*setting.samples[1:], setting.samples[0]]
    labels = setting.packed(tmp_path / "shifted", setting.labels(samples=shifted))
    refused(setting.verify(labels), "if image n of the labels is image n+1 of the folder")


def test_a_wrong_order_of_classes_is_named(setting, tmp_path):
    """Two classes are swapped, or all are shuffled."""
    exchanged = torch.arange(CLASSES)
    exchanged[[2, 7]] = exchanged[[7, 2]]
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(CLASSES))
    for name, order in (("exchanged", exchanged), ("shuffled", shuffled)):
        teacher = nn.Sequential(setting.teacher(), Reordered(order))
        labels = setting.packed(tmp_path / name, setting.labels(teacher=teacher))
        words = "with the teacher's classes 2 (new10) and 7 (new5) exchanged", "--class-order"
        refused(setting.verify(labels), *(words if name == "exchanged" else ["classes in another order: class 0 "]))


class Reordered(nn.Module):
    """Puts classes in another order."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, logits):
        return logits[:, self.order]


def test_a_wrong_size_or_normalisation_is_named(setting, tmp_path):
    """Each is wrong alone, or both are; the flags in the error make the labels fit."""
    bare = "without normalisation (images in 0 … 1)"
    cases = {
        "size": ({"size": 64}, Codec(16), ["at input size 64", "give --input-size 64"]),
        "near": ({"norm": CIFAR10}, Codec(4), ["with CIFAR-10's normalisation"]),
        "none": ({"norm": NONE}, Codec(8), [bare, "--mean 0 0 0 --std 1 1 1"]),
        "both": ({"size": 64, "norm": NONE}, Codec(4), ["at input size 64", bare]),
    }
    for name, (how, codec, words) in cases.items():
        labels = setting.packed(tmp_path / name, setting.labels(mix="none", **how), codec)
        refused(setting.verify(labels), *words)
    fits(setting.verify(tmp_path / "both", "--mean", 0, 0, 0, "--std", 1, 1, 1, size=64))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"flip": "never"}, "if no view is flipped"),
        ({"flip": "before"}, "if views are flipped before they are cropped"),
        ({"swap": True}, "if rows and columns of the cutmix boxes are exchanged"),
    ],
    ids=str,
)
def test_wrong_views_are_named(how, words, setting, tmp_path):
    """Training would show other views than the teacher saw."""
    refused(setting.verify(setting.packed(tmp_path / "labels", setting.labels(**how))), words, "make the labels again")


def relabel(setting, folder, *words):
    """Run relabel_FKD.py with teacher 1, whose classes are in the order of numbers, not of text."""
    flags = relabel_flags(setting.images, setting.files[1], folder, arch="cnn", batch_size=BATCH)
    return run(relabel_FKD, *flags, "--input-size", SIDE, "--mix-type", "cutmix", "--accept-labels", *words)


def test_own_labels_state_how_they_were_made(setting, tmp_path):
    """Input size, normalisation and ensemble rule come from the manifest; views may be drawn."""
    louder = torch.load(setting.files[2], weights_only=True)
    torch.save(louder | {name: 3 * louder[name] for name in list(louder)[-2:]}, tmp_path / "louder.pth")
    teacher = ["--arch", "cnn", "--checkpoint", tmp_path / "louder.pth"]
    how = ["--views", "drawn", "--bits", 8, *teacher, "--ensemble", "norm-mean", "--std", 0.3, 0.3, 0.3]
    labels = tmp_path / "labels"
    assert relabel(setting, labels, *how).code == 0
    result = setting.verify(labels, *teacher, size=None)
    assert result.code == 0, result.err
    assert result.out.startswith("these labels are these teachers' answers to these images: largest difference")
    refused(setting.verify(labels, *teacher, "--ensemble", "mean", size=None), "give --ensemble norm-mean")
    refused(setting.verify(labels, *teacher, "--std", 1, 1, 1, size=None), "--std contradicts", "made with 0.3 0.3 0.3")
    refused(setting.verify(labels, *teacher, size=64), "--input-size contradicts", "made with 32")


@pytest.mark.parametrize("format", ["packed", "tar"])
def test_floating_point_images_are_opened_as_the_labels_state(format, setting, tmp_path):
    """Pixels in [0, 1] that were relabelled as normalised ones; relabelling goes on only with the same meaning."""
    images, labels = tmp_path / "images.pt", tmp_path / "labels"
    pixels = torch.from_numpy(setting.pixels).flatten(0, 1).permute(0, 3, 1, 2) / 255
    torch.save((pixels, torch.arange(CLASSES).repeat_interleave(PER_CLASS)), images)
    words = ["--data", images, "--normalised", "yes", "--format", format]
    done = relabel(setting, labels, *words)
    assert done.code == 0, done.err
    assert open_labels(labels).settings["pixel_values"] == "normalised"
    fits(setting.verify(labels, images=images))
    if format == "packed":
        refused(relabel(setting, labels, *words, "--normalised", "no"), "pixel_values is normalised, not unit")


def test_relabelling_goes_on_with_the_same_teacher(setting, tmp_path, monkeypatch):
    """A started store is continued if the teacher gives the same logits, and refused otherwise."""
    folder = tmp_path / "labels"
    assert relabel(setting, folder).code == 0
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stop_after_first():
        (folder / "epoch_0001.safetensors").unlink()
        manifest = json.loads(whole["manifest.json"])
        del manifest["digests"]["epoch_0001.safetensors"]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    stop_after_first()
    assert relabel(setting, folder).code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    stop_after_first()
    monkeypatch.setattr(
        teachers, "build_teacher", lambda *_, **__: setting.teacher(2)
    )  # another library may build other weights
    refused(relabel(setting, folder), f"{folder} already cannot be continued with these teachers and images")
    assert not (folder / "epoch_0001.safetensors").exists()


def test_contradicting_flags_are_refused(setting, tmp_path):
    """One sentence names the flag."""
    labels = setting.packed(tmp_path / "labels", setting.labels())
    refused(verify(labels, "--images", setting.images), "--arch is missing")
    refused(verify(labels, "--arch", "cnn"), "--images is missing")
    refused(setting.verify(labels, size=16), "--input-size 16 is smaller than the views")
    few = write_images(tmp_path / "few", setting.pixels[:, :2])
    refused(setting.verify(labels, images=few), "holds 24 images", "refer to 48")
    without = verify(labels)
    assert without.code == 0
    assert without.out.startswith("ok: 2 epochs of 48 images")


def test_another_number_of_classes_is_refused(setting, tmp_path, monkeypatch):
    """The teacher belongs to another task."""
    labels = setting.packed(tmp_path / "labels", setting.labels())
    bigger = nn.Sequential(setting.teacher(), nn.Linear(CLASSES, 20)).eval()
    monkeypatch.setattr(teachers, "build_teacher", lambda *_, **__: bigger)
    refused(setting.verify(labels), "have 12 classes and the teacher 20")


def test_a_teacher_that_cannot_tell(setting, tmp_path, monkeypatch):
    """A teacher with nearly constant logits is not refused; the result says that it cannot tell."""
    constant = nn.Sequential(setting.teacher(), Squashed()).eval()
    labels = setting.packed(tmp_path / "labels", setting.labels(teacher=constant))
    monkeypatch.setattr(teachers, "build_teacher", lambda *_, **__: constant)
    other = write_images(tmp_path / "other", draw_images(PER_CLASS, 9))
    for images in (setting.images, other):
        assert "so this check cannot tell" in fits(setting.verify(labels, images=images))


class Squashed(nn.Module):
    """Logits that hardly depend on the image."""

    def forward(self, logits):
        return 1e-4 * logits + torch.arange(CLASSES)


def test_verbose(setting, tmp_path):
    """There is one line per batch that the teacher saw."""
    result = setting.verify(setting.packed(tmp_path / "labels", setting.labels()), "-v")
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"epoch {e} batch {b}" for e, b in ((0, 0), (0, 1), (1, 0), (1, 2))
    ]
    assert all("16 rows, difference 0.0" in line for line in lines[:-1])


def test_missing_information_is_reported(setting, tmp_path):
    """Labels without digests, index, view size or class names are reported as such."""
    batches = setting.labels(epochs=1)
    for items in (6, 7):
        writer = TarWriter(tmp_path / str(items), with_index=items == 7)
        writer.write(0, batches[0])
    strangers = unchecked(open_labels(tmp_path / "6", 7))
    assert len(strangers) == 4
    assert all(line.startswith("labels  not checked: ") for line in strangers)
    assert "python -m utils.labels verify PATH --images DIR --arch TEACHER asks the teacher" in strangers[0]
    assert "--fkd-seed 7" in strangers[1]
    assert "size and normalisation" in strangers[2]
    assert len(unchecked(open_labels(tmp_path / "7"))) == 3
    store = open_labels(setting.packed(tmp_path / "own", batches))
    store.image_digests = object()
    store.class_list = ["a"]
    store.settings |= {"input_size": SIDE, "mean": [0.5] * 3}
    assert unchecked(store) == []


def out_of_memory(*_):
    """Fail as a forward pass does on a full GPU."""
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_full_gpu_is_not_taken_for_a_wrong_size():
    """The error goes on to `run_script`, whose sentence names the memory; it is no verdict about the labels."""
    store = SimpleNamespace(num_images=1, has_epochs=True)
    teacher = SimpleNamespace(num_classes=out_of_memory)
    inquiry = SimpleNamespace(store=store, samples=[("a.png", 0)], teachers=teacher, distance=out_of_memory)
    replay = SimpleNamespace(size=32)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        teacher_check.first_verdict(inquiry, replay, "labels", "images")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        label_hypotheses.distance(inquiry, None, replay)
