"""Training without a teacher: mixed images have mixed labels, and images may bring soft labels of their own."""

import json
import signal

import numpy as np
import pytest
import rank_jobs
import torch
from helpers import CLASSES, PER_CLASS, SIDE, losses, read_run, run, same_weights, signal_in_step
from PIL import Image
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF
from view_batches import views_from_files

import train_KD_parallel
from utils.config import IMAGENET_MEAN, IMAGENET_STD, Findings, KDConfig
from utils.data.augment import augmentation_of
from utils.data.images import Container, Member
from utils.data.replay import mix_images
from utils.labels.hard import LabelledViews
from utils.labels.training_views import TrainingViews
from utils.labels.views import DrawnViews, ViewPolicy
from utils.report.groups import regime_of
from utils.report.runs import FinishedRun
from utils.run import preflight
from utils.run.image_labels import asks_teacher, label_views
from utils.system.distributed import Share
from utils.system.errors import InputError
from utils.training.losses import build_loss

pytestmark = pytest.mark.usefixtures("small_student")
IMAGES = CLASSES * PER_CLASS
# flags of Tiny.flags for training on the classes of folders alone
PLAIN = {"fkd_path": None, "epochs": 2, "loss_type": "ce"}


def policy_of(mix_type, size=SIDE):
    return ViewPolicy(5, size, 0.08, 1.0, mix_type, 0.8, 1.0)


def probabilities(rows=21, classes=4):
    return torch.rand(rows, classes, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


@pytest.mark.parametrize("mix_type", ["cutmix", "mixup"])
def test_labels_are_mixed_as_the_pixels_are(mix_type):
    """Image i is white for class i alone: the mean of channel c in the mixed view is the weight of class c."""
    targets = torch.arange(21) % 4
    views = LabelledViews(policy_of(mix_type), targets, 4, 8)
    weights = []
    for epoch in range(3):
        for batch in range(views.batches_per_epoch):
            drawn = views.read(epoch, batch)
            colours = F.one_hot(targets[drawn.index], 4).double()
            mixed = mix_images(colours[:, :, None, None].expand(-1, -1, SIDE, SIDE), drawn.mix)
            torch.testing.assert_close(drawn.logits.double(), mixed.mean(dim=(2, 3)), atol=1e-6, rtol=0)
            weights += drawn.logits.max(dim=1).values.tolist()
    assert min(weights) < 0.9


def test_the_loss_is_that_of_both_classes():
    """r CE(target) + (1 - r) CE(partner's target), as IDC and Minimax Diffusion compute it."""
    targets = torch.arange(21) % 4
    drawn = LabelledViews(policy_of("cutmix"), targets, 4, 21).read(0, 0)
    outputs = torch.randn(21, 4)
    y1, x1, y2, x2 = drawn.mix.box
    r = 1 - (y2 - y1) * (x2 - x1) / SIDE**2
    own, other = targets[drawn.index], targets[drawn.index][drawn.mix.partner]
    wanted = r * F.cross_entropy(outputs, own) + (1 - r) * F.cross_entropy(outputs, other)
    assert 0 < r < 1
    torch.testing.assert_close(build_loss("ce", image_labels="mixed classes")(outputs, drawn.logits, own), wanted)
    assert not torch.isclose(build_loss("ce")(outputs, drawn.logits, own), wanted)  # ignores the partner


@pytest.mark.parametrize("mix_type", ["none", "cutmix", "mixup"])
def test_soft_labels_of_the_images_are_handed_out(mix_type):
    labels = probabilities()
    for logs in (False, True):
        views = LabelledViews(policy_of(mix_type), labels, 4, 8, logs=logs)
        for batch in range(3):
            drawn = views.read(1, batch)
            wanted = labels[drawn.index]
            if mix_type != "none":
                r = drawn.mix.own_share(SIDE)
                wanted = r * wanted + (1 - r) * wanted[drawn.mix.partner]
            torch.testing.assert_close(drawn.logits, wanted.log() if logs else wanted)


def test_ranks_share_the_labels():
    """Each rank gets the labels of its rows, mixed with partners on other ranks."""
    views = LabelledViews(policy_of("cutmix"), probabilities(), 4, 8)
    whole = views.read(0, 1).logits
    parts = [TrainingViews(views, share=Share(rank, 2, 4)).read(0, 1).logits for rank in range(2)]
    rows = [Share(rank, 2, 4).rows(8) for rank in range(2)]
    assert sorted(torch.cat(rows).tolist()) == list(range(8))
    for part, own in zip(parts, rows, strict=True):
        assert torch.equal(part, whole[own])


class Labelled(Container):
    """Images that bring soft labels; nobody looks at their pixels."""

    path = "labelled"

    def __init__(self, soft_labels):
        self.soft_labels = soft_labels

    def name(self, number):
        return str(number)

    def read(self, number):
        return b""


def own_labels(loss, labels, kind, mix_type="none", classes=4):
    """Return the labels of the first batch of images with soft labels, their index, and the loss function."""
    words = ["--train-dir", "images", "--val-dir", "val", "--loss-type", loss, "--batch-size", "21", "-T", "4"]
    config = KDConfig.parse([*words, "--ce-weight", "0.5", *(["--mix-type", mix_type] if mix_type != "none" else [])])
    container = Labelled(labels)
    samples = [(Member(container, number), 0) for number in range(21)]
    source = DrawnViews(policy_of(mix_type), 21, 21)
    views, found = label_views(config, Findings(input_size=SIDE), source, samples, classes, kind)
    assert (found.image_labels, found.answers) == (kind, kind)
    loss_fn = build_loss(
        loss, config.temperature, config.ce_weight, answers=found.answers, image_labels=found.image_labels
    )
    drawn = views.read(0, 0)
    return drawn, lambda outputs: loss_fn(outputs, drawn.logits, torch.zeros(21, dtype=torch.int64))


def test_losses_of_probabilities():
    """ce: soft cross-entropy; kl: at -T for the student alone, because probabilities have no temperature any more."""
    labels, outputs = probabilities(), torch.randn(21, 4)
    drawn, loss = own_labels("ce", labels, "probabilities")
    rows = labels[drawn.index]
    torch.testing.assert_close(loss(outputs), -(rows * outputs.log_softmax(dim=1)).sum(dim=1).mean())
    drawn, loss = own_labels("kl", labels, "probabilities")
    rows = labels[drawn.index]
    wanted = (rows * (rows.log() - (outputs / 4).log_softmax(dim=1))).sum(dim=1).mean()
    torch.testing.assert_close(loss(outputs), wanted)


def test_hard_rows_among_probabilities():
    """A probability of 0, whose logarithm is not finite, gives a finite loss and gradient."""
    labels = F.one_hot(torch.arange(21) % 4, 4).float()
    for loss_type in ("ce", "kl"):
        outputs = torch.randn(21, 4, requires_grad=True)
        drawn, loss = own_labels(loss_type, labels, "probabilities")
        scaled = outputs / (4 if loss_type == "kl" else 1)
        torch.testing.assert_close(loss(outputs), F.cross_entropy(scaled, labels[drawn.index].argmax(dim=1)))
        loss(outputs).backward()
        assert outputs.grad.isfinite().all()


def test_losses_of_logits():
    """ce: against their softmax, as DATM does; kl: both divided by -T; mse_gt: mean squared distance and classes."""
    labels, outputs = torch.randn(21, 4) * 3, torch.randn(21, 4)
    drawn, loss = own_labels("ce", labels, "logits")
    rows = labels[drawn.index]
    torch.testing.assert_close(loss(outputs), F.cross_entropy(outputs, rows.softmax(dim=1)))
    drawn, loss = own_labels("kl", labels, "logits")
    rows = labels[drawn.index]
    wanted = F.kl_div((outputs / 4).log_softmax(dim=1), (rows / 4).softmax(dim=1), reduction="batchmean")
    torch.testing.assert_close(loss(outputs), wanted)
    drawn, loss = own_labels("mse_gt", labels, "logits")
    rows = labels[drawn.index]
    wanted = (outputs - rows).square().mean() + 0.5 * F.cross_entropy(outputs, torch.zeros(21, dtype=torch.int64))
    torch.testing.assert_close(loss(outputs), wanted)
    drawn, loss = own_labels("softce", labels, "logits")
    wanted = F.cross_entropy(outputs / 4, (labels[drawn.index] / 4).softmax(dim=1))
    torch.testing.assert_close(loss(outputs), wanted)
    drawn, loss = own_labels("gift", labels, "logits")
    hard = F.normalize(torch.tensor([[0.9, *[0.1 / 3] * 3]]))
    wanted = 1 - F.cosine_similarity(outputs, F.normalize(labels[drawn.index]) + 0.5 * hard).mean()
    torch.testing.assert_close(loss(outputs), wanted)


def test_logits_are_mixed_as_probabilities():
    labels = torch.randn(21, 4)
    drawn, _ = own_labels("ce", labels, "logits", "cutmix")
    rows, r = labels[drawn.index].softmax(dim=1), drawn.mix.own_share(SIDE)
    torch.testing.assert_close(drawn.logits, r * rows + (1 - r) * rows[drawn.mix.partner])


@pytest.mark.parametrize(
    ("loss", "classes", "kind", "mix_type", "said"),
    [
        ("mse_gt", 4, "probabilities", "none", "--loss-type mse_gt compares logits"),
        ("gift", 4, "probabilities", "none", "--loss-type gift compares logits"),
        ("gift", 4, "logits", "cutmix", "--mix-type cutmix mixes probabilities"),
        ("kl", 4, "logits", "cutmix", "--mix-type cutmix mixes probabilities"),
        ("ce", 5, "probabilities", "none", "have the shape 21 x 4, but 21 images and 5 classes need 21 x 5"),
    ],
)
def test_soft_labels_that_do_not_fit(loss, classes, kind, mix_type, said):
    with pytest.raises(InputError) as error:
        own_labels(loss, probabilities(), kind, mix_type, classes)
    assert said in str(error.value)


def test_who_asks_a_teacher():
    """A named teacher answers, whatever the images bring; without one, ce and soft labels need none."""

    def asks(flags, own):
        config = KDConfig.parse(["--train-dir", "images", "--val-dir", "val", *flags.split()])
        return asks_teacher(config, own)

    assert [asks("--loss-type kl", own) for own in (False, True)] == [True, False]
    assert [asks("--loss-type ce", own) for own in (False, True)] == [False, False]
    assert asks("--loss-type kl --teacher-checkpoint t.pth", True)
    assert asks("--loss-type kl --teacher-weights DEFAULT", True)
    committee = "--teacher-model a b --ensemble-weights 1 2"
    assert asks(committee, False)
    with pytest.raises(
        InputError, match="--ensemble-weights has no effect, because --train-dir images holds soft labels"
    ):
        asks(committee, True)


@pytest.mark.parametrize("mix_type", ["cutmix", "mixup"])
def test_the_loss_of_a_run_on_mixed_images_is_reproduced(tiny, tmp_path, mix_type):
    """The loss is recomputed from image files, views and the classes of both images."""
    flags = tiny.flags(tmp_path / "run", **PLAIN, sgd=True, learning_rate=1e-12, mix_type=mix_type)
    result = run(train_KD_parallel, *flags)
    assert result.code == 0, result.err
    assert f"hard labels: no teacher answers on {mix_type} views" in result.out
    samples = ImageFolder(tiny.train).samples
    targets = torch.tensor([target for _, target in samples])
    config = KDConfig.parse(flags)
    source = DrawnViews(preflight.view_policy(config, Findings(input_size=SIDE)), IMAGES, config.batch_size)
    views, found = label_views(config, Findings(), source, samples, CLASSES)
    model, total = rank_jobs.small_student("", CLASSES, 0, "").train(), 0.0
    for batch in range(views.batches_per_epoch):
        drawn = views.read(0, batch)
        outputs = model(views_from_files(samples, drawn)).double()
        own, r = targets[drawn.index], drawn.mix.own_share(SIDE)
        other = own[drawn.mix.partner]
        total += r * F.cross_entropy(outputs, own, reduction="sum").item()
        total += (1 - r) * F.cross_entropy(outputs, other, reduction="sum").item()
    done = read_run(tmp_path / "run")
    assert done.rows[0]["train_loss"] == pytest.approx(total / IMAGES, rel=1e-4)
    assert done.summary["args"]["image_labels"] == found.image_labels == "mixed classes"
    assert done.summary["labels"]["dialect"] == "hard labels"


@pytest.mark.parametrize("augment", ["dsa", "imagenet-hard"])
def test_the_loss_of_a_run_on_augmented_images_is_reproduced(tiny, tmp_path, augment):
    """The augmentation is applied to the normalised views, before they are mixed."""
    flags = tiny.flags(tmp_path / "run", **PLAIN, sgd=True, learning_rate=1e-12, augment=augment, mix_type="None")
    assert run(train_KD_parallel, *flags).code == 0
    config, found = KDConfig.parse(flags), Findings(input_size=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    augmentation = augmentation_of(config, found)
    views = DrawnViews(preflight.view_policy(config, found), IMAGES, config.batch_size, augmentation)
    samples = ImageFolder(tiny.train).samples
    model, total, plain = rank_jobs.small_student("", CLASSES, 0, "").train(), 0.0, 0.0
    for batch in range(views.batches_per_epoch):
        drawn = views.read(0, batch)
        targets = torch.tensor([samples[index][1] for index in drawn.index.tolist()])
        images = views_from_files(samples, drawn)
        total += F.cross_entropy(model(augmentation(images, drawn.augment)), targets, reduction="sum").item()
        plain += F.cross_entropy(model(images), targets, reduction="sum").item()
    loss = read_run(tmp_path / "run").rows[0]["train_loss"]
    assert loss == pytest.approx(total / IMAGES, rel=1e-4)
    assert loss != pytest.approx(plain / IMAGES, rel=1e-3)


def test_loaders_agree_on_mixed_labels(tiny, tmp_path):
    flags = PLAIN | {"mix_type": "cutmix", "sgd": True, "learning_rate": 0.05}
    for name, more in (("resident", {}), ("workers", {"loader": "workers", "workers": 1})):
        result = run(train_KD_parallel, *tiny.flags(tmp_path / name, **flags | more))
        assert result.code == 0, result.err
    resident, workers = (read_run(tmp_path / name) for name in ("resident", "workers"))
    assert same_weights(resident.weights(), workers.weights())


def test_a_run_on_unmixed_labels_does_not_go_on_with_mixed_ones(tiny, tmp_path):
    """Earlier releases trained on the class of one image alone, whatever --mix-type mixed into it."""
    flags = tiny.flags(tmp_path / "run", **PLAIN, mix_type="cutmix")
    assert run(train_KD_parallel, *flags).code == 0
    path = tmp_path / "run" / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    assert state["arguments"].pop("image_labels") == "mixed classes"
    torch.save(state, path)
    refused = run(train_KD_parallel, *flags, "--resume")
    assert refused.code == 2
    assert "was classes and is mixed classes" in refused.err


def save_set(tiny, folder, labels):
    """Write the training images of `tiny` as tensors with soft labels."""
    pixels = [TF.pil_to_tensor(Image.open(path)) for path, _ in ImageFolder(tiny.train).samples]
    folder.mkdir()
    torch.save(torch.stack(pixels), folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_a_run_on_soft_labels_of_the_images(tiny, tmp_path, kind):
    """Soft labels that name a wrong class teach the student that class; log and reports say where they are from."""
    classes = (torch.arange(IMAGES) // PER_CLASS + 1) % CLASSES
    labels = F.one_hot(classes, CLASSES) * 0.9 + 0.1 / CLASSES
    labels = labels if kind == "probabilities" else labels.log() + 2
    save_set(tiny, tmp_path / "set", labels)
    flags = PLAIN | {"epochs": 80, "sgd": True, "learning_rate": 0.3, "augment": "none", "batch_size": IMAGES}
    flags |= {"val_dir": tiny.train, "val_resize": SIDE, "eval_every": 50, "train_dir": tmp_path / "set"}
    result = run(train_KD_parallel, *tiny.flags(tmp_path / "run", **flags))
    assert result.code == 0, result.err
    assert f"the images' {kind}: no teacher answers" in result.out
    done = read_run(tmp_path / "run")
    entropy = -(0.9 + 0.1 / 3) * np.log(0.9 + 0.1 / 3) - 2 * (0.1 / 3) * np.log(0.1 / 3)
    assert losses(done)[-1] == pytest.approx(entropy, abs=0.05)
    assert done.rows[-1]["train_top1"] > 80  # of the wrong classes, which the labels name
    assert done.rows[-1]["val_top1"] < 20  # of the classes of the folders
    assert done.summary["labels"]["dialect"] == "soft labels of the images"
    assert regime_of(FinishedRun(done.path, done.summary, {})) == "SL"


@pytest.mark.parametrize("flag", ["class_order", "subset"])
def test_soft_labels_follow_the_numbers_of_their_classes(tiny, tmp_path, flag):
    """--class-order and --classes number the classes anew: class 2 becomes 0, 0 becomes 1, 1 becomes 2."""
    save_set(tiny, tmp_path / "set", F.one_hot(torch.arange(IMAGES) // PER_CLASS, CLASSES) * 0.9 + 0.1 / CLASSES)
    (tmp_path / "order").write_text("2\n0\n1\n")
    flags = PLAIN | {"epochs": 80, "sgd": True, "learning_rate": 0.3, "augment": "none", "batch_size": IMAGES}
    flags |= {"val_dir": tiny.train, "val_resize": SIDE, "eval_every": 50, "train_dir": tmp_path / "set"}
    words = ["--class-order" if flag == "class_order" else "--classes", tmp_path / "order"]
    result = run(train_KD_parallel, *tiny.flags(tmp_path / "run", **flags), *words)
    assert result.code == 0, result.err
    assert read_run(tmp_path / "run").rows[-1]["train_top1"] > 80


def test_soft_labels_of_classes_that_are_left_out(tiny, tmp_path):
    """Probabilities of two of three classes do not add up to 1: the run is refused in one sentence."""
    save_set(tiny, tmp_path / "set", F.one_hot(torch.arange(IMAGES) // PER_CLASS, CLASSES).float())
    (tmp_path / "listed").write_text("2\n0\n")
    flags = tiny.flags(tmp_path / "run", **PLAIN, train_dir=tmp_path / "set")
    result = run(train_KD_parallel, *flags, "--classes", tmp_path / "listed")
    assert result.code == 2
    assert f"--classes {tmp_path / 'listed'} leaves out classes, but the soft labels of --train-dir" in result.err
    assert "are for all of its classes; leave out --classes" in result.err


def test_a_batch_size_above_the_number_of_images_takes_them_all(tiny, tmp_path):
    """Each epoch is one step on all images; a micro-batch that is larger than the set is one as well."""
    flags = PLAIN | {"sgd": True, "learning_rate": 0.05, "mix_type": "cutmix"}
    sizes = {"equal": (IMAGES, 1), "above": (256, 1), "accumulated": (256, 2)}
    for name, (size, steps) in sizes.items():
        more = {"batch_size": size, "gradient_accumulation_steps": steps}
        result = run(train_KD_parallel, *tiny.flags(tmp_path / name, **flags | more))
        assert result.code == 0, result.err
        assert "epochs of 1 batches" in result.out
    equal, *others = (read_run(tmp_path / name).weights() for name in sizes)
    assert all(same_weights(other, equal) for other in others)


def step_run(tiny, path, **changed):
    """Train 5 epochs of one step with a milestone at epoch 3, and return the `Run`."""
    flags = PLAIN | {"epochs": 5, "sgd": True, "learning_rate": 0.1, "momentum": 0.9, "batch_size": 64}
    flags |= {"schedule": "step", "milestones": 3, "augment": "none"} | changed
    result = run(train_KD_parallel, *tiny.flags(path, **flags))
    assert result.code == 0, result.err
    return read_run(path)


@pytest.mark.parametrize("momentum", ["fresh", "kept"])
def test_momentum_at_a_milestone(tiny, tmp_path, momentum):
    """A plain PyTorch loop with a new optimizer at the milestone, or with MultiStepLR, has the same losses."""
    done = step_run(tiny, tmp_path / "run", step_momentum=momentum, weight_decay=0.01, decay_all=True)
    samples = ImageFolder(tiny.train).samples
    config = KDConfig.parse(tiny.flags(tmp_path / "run", **PLAIN, augment="none", batch_size=64))
    views = DrawnViews(preflight.view_policy(config, Findings(input_size=SIDE)), IMAGES, config.batch_size)
    model, wanted, rate = rank_jobs.small_student("", CLASSES, 0, "").train(), [], 0.1
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=0.01)
    for epoch in range(5):
        if epoch == 3 and momentum == "fresh":
            optimizer = torch.optim.SGD(model.parameters(), 0.1 * rate, momentum=0.9, weight_decay=0.01)
        elif epoch == 3:
            optimizer.param_groups[0]["lr"] = 0.1 * rate
        drawn = views.read(epoch, 0)
        targets = torch.tensor([samples[index][1] for index in drawn.index.tolist()])
        loss = F.cross_entropy(model(views_from_files(samples, drawn)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())
    assert losses(done) == pytest.approx(wanted, rel=1e-3)


def test_a_resumed_run_has_the_momentum_of_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    """Stops are before the milestone, and within and at the end of its epoch, where the momentum is not fresh."""
    flags = {"batch_size": 4}
    whole = step_run(tiny, tmp_path / "whole", **flags)
    other = step_run(tiny, tmp_path / "other", **flags, step_momentum="kept")
    assert not same_weights(whole.weights(), other.weights())
    for name, steps in (("before", 9), ("within", 11), ("after", 12)):  # the milestone is before step 10
        with pytest.MonkeyPatch.context() as patch:
            signal_in_step(patch, signal.SIGTERM, steps)
            words = tiny.flags(tmp_path / name, **PLAIN | {"epochs": 5, "sgd": True, "learning_rate": 0.1} | flags)
            words += ["--momentum", 0.9, "--schedule", "step", "--milestones", 3, "--augment", "none"]
            assert run(train_KD_parallel, *words).code == 128 + signal.SIGTERM
        assert run(train_KD_parallel, *words, "--resume").code == 0
        assert same_weights(read_run(tmp_path / name).weights(), whole.weights())


def test_two_processes_share_a_batch_above_the_number_of_images(tiny, tmp_path):
    """Weights are those of one process, up to rounding, on mixed images with mixed labels."""
    flags = PLAIN | {"sgd": True, "learning_rate": 0.1, "sync_bn": True, "batch_size": 64, "mix_type": "cutmix"}
    (tmp_path / "jobs.json").write_text(json.dumps([["train_KD_parallel", *tiny.flags(tmp_path / "two", **flags)]]))
    done = rank_jobs.launch(2, tmp_path / "jobs.json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(train_KD_parallel, *tiny.flags(tmp_path / "one", **flags)).code == 0
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name, weight in one.weights().items():
        torch.testing.assert_close(two.weights()[name], weight, rtol=1e-4, atol=1e-5)
