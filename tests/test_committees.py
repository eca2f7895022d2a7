"""Committees of teachers, stored and live: weights, batch-specific soft labels (BSSL), settings, refusals."""

import copy
import json
import math
from argparse import Namespace

import pytest
import torch
from helpers import CPU, SIDE, read_run, relabel_flags, run, same_weights, save_teacher
from torch import nn

import relabel_FKD
import train_KD_parallel
from utils.config import KDConfig, RelabelConfig
from utils.data.folders import open_folder
from utils.data.replay import Normalise
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels import command
from utils.labels.formats import open_labels
from utils.labels.packed import PackedWriter
from utils.run import teacher_check
from utils.system.errors import InputError
from utils.training.models import build_student, build_teacher
from utils.training.own_model import load_function, source_digest
from utils.training.precision import Precision
from utils.training.teachers import Ensemble, combine, parts_of

FP32 = Precision("fp32", CPU)
CONVNET = "convnet2_w8_bn"
OWN = """
from torch import nn

def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, num_classes),
    )
"""

OLD = """
from torch import nn
from torch.nn import functional as F

class Norm(nn.BatchNorm2d):
    def forward(self, images):
        batch = self.training or not self.track_running_stats
        return F.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, batch, self.momentum)

def net(num_classes):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Norm(8), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def committee(tmp_path_factory):
    """Names and files of two small teachers of three classes; the second is a user's network with dropout."""
    root = tmp_path_factory.mktemp("committee")
    (root / "nets.py").write_text(OWN)
    own = f"{root / 'nets.py'}:net"
    torch.manual_seed(1)
    model = load_function(own)(3)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.running_mean.normal_()
    torch.save(model.state_dict(), root / "own.pth")
    return [CONVNET, own], [str(save_teacher(root / "convnet.pth", CONVNET)), str(root / "own.pth")]


def relabel_words(images, committee, target, *more, epochs=2, batch_size=7):
    """Return the command line that labels images with both teachers, on cutmix views."""
    names, files = committee
    words = ["-a", names[1], "--checkpoint", files[1], "--mix-type", "cutmix", *more]
    return relabel_flags(images, files[0], target, *words, arch=names[0], epochs=epochs, batch_size=batch_size)


def replayed(images, labels):
    """Yield the images and the stored logits of each batch of an image folder's labels."""
    store = open_labels(labels)
    dataset = ViewDataset(open_folder(images, "--data").samples, store, SIDE)
    normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), CPU, torch.contiguous_format)
    batches = WorkerBatches(dataset, range(store.epochs), normalise, 0, CPU)
    for epoch in range(store.epochs):
        for batch in batches.epoch(epoch):
            yield batch.images, batch.soft_labels.float()


def in_halves(name, file, images):
    """Return a teacher's logits with batch normalisation in train mode, dropout off, each half of the batch alone."""
    model = build_teacher(name, file).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    middle = len(images) // 2
    return torch.cat([model(images[:middle]), model(images[middle:])])


@pytest.mark.parametrize("form", ["packed", "tar"])
def test_batch_specific_soft_labels(form, tiny, committee, tmp_path):
    """Batches of 7 and 5 are halved into 3 and 4, 2 and 3; CV-DD's code weighs the teachers' answers and adds them."""
    more = ["--bssl", "--ensemble-weights", 1, 3, "--format", form]
    done = run(relabel_FKD, *relabel_words(tiny.train, committee, tmp_path / "labels", *more))
    assert done.code == 0, done.err
    sizes = []
    for images, stored in replayed(tiny.train, tmp_path / "labels"):
        one, other = (in_halves(name, file, images) for name, file in zip(*committee, strict=True))
        torch.testing.assert_close(stored, 0.25 * one + 0.75 * other, rtol=2e-3, atol=2e-3)
        sizes.append(len(images))
    assert sizes == [7, 5, 7, 5]
    settings = open_labels(tmp_path / "labels").settings
    assert (settings["bssl"], settings["ensemble_weights"]) == (True, [0.25, 0.75])


@pytest.mark.parametrize("form", ["packed", "tar"])
def test_labels_with_batch_statistics_are_verified_as_they_state(form, tiny, committee, tmp_path, capsys):
    """Neither --bssl nor the weights must be given again; labels that do not state BSSL are asked in both modes."""
    names, files = committee
    more = ["--bssl", "--ensemble-weights", 1, 3, "--format", form]
    assert run(relabel_FKD, *relabel_words(tiny.train, committee, tmp_path / "labels", *more)).code == 0
    teachers = [word for pair in zip(names, files, strict=True) for word in ("-a", pair[0], "--checkpoint", pair[1])]
    words = ["verify", str(tmp_path / "labels"), "--images", str(tiny.train), *teachers]
    assert command.main(words, teacher_check.run) == 0
    fits = "these labels are these teachers' answers to these images"
    assert f"{fits}: largest difference 0 (" in capsys.readouterr().out
    assert command.main([*words, "--ensemble-weights", "3", "1"], teacher_check.run) == 2
    assert run(relabel_FKD, *relabel_words(tiny.train, committee, tmp_path / "plain", "--format", form)).code == 0
    words[1] = str(tmp_path / "plain")
    for more, how in (([], ""), (["--bssl"], ", in eval mode,")):
        assert command.main([*words, *more], teacher_check.run) == 0
        assert f"{fits}{how}: largest".replace(",:", ":") in capsys.readouterr().out


def test_batches_of_a_gpu_keep_their_own_statistics(committee):
    """Several batches are answered by one call; each half of each has its own forward pass, and nothing drifts."""
    ensemble = Ensemble(*committee, "mean", FP32, bssl=True, input_size=SIDE)
    before = [copy.deepcopy(teacher.state_dict()) for teacher in ensemble.teachers]
    batches = [torch.randn(rows, 3, SIDE, SIDE) * (1 + rows) for rows in (5, 4, 6)]
    for together, alone in zip(ensemble.answer(batches), map(ensemble, batches), strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert all(same_weights(old, new.state_dict()) for old, new in zip(before, ensemble.teachers, strict=True))
    assert [len(part) for part in parts_of(batches[0], 2)] == [2, 3]
    assert len(parts_of(batches[0][:1], 2)) == 1
    ensemble.parts = 0
    running = Ensemble(*committee, "mean", FP32)
    torch.testing.assert_close(ensemble(batches[0]), running(batches[0]), rtol=0, atol=0)


def test_running_statistics_are_used_without_bssl(tmp_path):
    """Networks with lines of old versions of PyTorch take the batch's statistics if a layer does not track any."""
    (tmp_path / "old.py").write_text(OLD)
    own = f"{tmp_path / 'old.py'}:net"
    model = load_function(own)(3)
    model[1].running_mean += 5
    torch.save(model.state_dict(), tmp_path / "old.pth")
    images = torch.randn(4, 3, SIDE, SIDE)
    ensemble = Ensemble([own], [tmp_path / "old.pth"], "mean", FP32)
    torch.testing.assert_close(ensemble(images), model.eval()(images), rtol=0, atol=0)
    halves = Ensemble([own], [tmp_path / "old.pth"], "mean", FP32, bssl=True)(images)
    torch.testing.assert_close(halves, torch.cat([model.train()(images[:2]), model(images[2:])]), rtol=0, atol=0)


def test_relabelling_with_batch_statistics_resumes(tiny, committee, tmp_path):
    """The bytes are those of a run without interruption; other answers or weights are not continued."""
    words = [relabel_words(tiny.train, committee, tmp_path / name, "--bssl", epochs=3) for name in ("whole", "stopped")]
    assert run(relabel_FKD, *words[0]).code == 0
    write = PackedWriter.write

    def write_or_stop(writer, epoch, batches):
        if epoch == 1:
            raise InputError("stopped")
        write(writer, epoch, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedWriter, "write", write_or_stop)
        assert run(relabel_FKD, *words[1]).code == 2
    plain = [word for word in words[1] if word != "--bssl"]
    refused = run(relabel_FKD, *plain)
    assert (refused.code, "bssl is True, not None" in refused.err) == (2, True), refused.err
    refused = run(relabel_FKD, *words[1], "--ensemble-weights", 1, 3)
    assert (refused.code, "ensemble_weights is None, not [0.25, 0.75]" in refused.err) == (2, True), refused.err
    done = run(relabel_FKD, *words[1])
    assert (done.code, "the first batch in" in done.out) == (0, True), done.err
    assert "nets.net (" in done.out
    assert "), by the statistics of each half of a batch on cpu" in done.out
    whole, stopped = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("whole", "stopped"))
    assert whole == stopped


@pytest.mark.parametrize("more", [["--bssl"], ["--ensemble", "norm-mean"]], ids=str)
def test_the_picture_of_a_dry_run_shows_the_answers_of_the_whole_batch(more, tiny, committee, tmp_path, monkeypatch):
    """Sixteen of 24 views are drawn, with the answers that relabelling stores for them."""
    shown = []
    monkeypatch.setattr("utils.data.preview.Preview.draw", lambda preview, *_: shown.append(preview))
    words = relabel_words(tiny.train, committee, tmp_path / "labels", *more)
    assert run(relabel_FKD, *words, "--dry-run").code == 0
    assert run(relabel_FKD, *words).code == 0
    store = open_labels(tmp_path / "labels")
    stored = [store.read(epoch, batch).logits[row] for epoch, batch, row in shown[0].places]
    assert len(stored) == 16
    torch.testing.assert_close(shown[0].logits, torch.stack(stored))


def test_a_half_of_one_image_has_no_statistics(tiny, committee, tmp_path):
    """12 images in batches of 9 leave 3, whose first half is one image; its own network has a layer with one value."""
    words = relabel_words(tiny.train, committee, tmp_path / "labels", "--bssl", batch_size=9)
    refused = run(relabel_FKD, *words)
    assert refused.code == 2
    assert "--bssl: a batch of 3 images has a half of one image" in refused.err
    assert refused.err.endswith("give another --batch-size than 9 for 12 images\n")
    assert not (tmp_path / "labels").exists()


def test_batch_statistics_need_batch_normalisation(tmp_path):
    save_teacher(tmp_path / "in.pth", "convnet2_w8")
    with pytest.raises(InputError, match=r"\(--bssl\) need batch normalisation, and --arch convnet2_w8 has none"):
        Ensemble(["convnet2_w8"], [tmp_path / "in.pth"], "mean", FP32, bssl=True)


def test_weights_of_teachers():
    """The answers are multiplied by the weights and added; equal weights are the mean."""
    logits = torch.randn(3, 4, 5)
    expected = 0.5 * logits[0] + 0.3 * logits[1] + 0.2 * logits[2]
    torch.testing.assert_close(combine(logits, "mean", (0.5, 0.3, 0.2)), expected)

    def shares(*weights):
        words = ["--teacher-model", "a", "b", "c", "--ensemble-weights", *map(str, weights)]
        return KDConfig.parse(["--train-dir", "t", "--val-dir", "v", *words]).teachers().shares

    assert shares(5, 3, 2) == (0.5, 0.3, 0.2)
    assert shares(7, 7, 7) is None


def test_presets_of_committees():
    """CV-DD weighs by softmax(figure / 10), of the teachers that are taken; FADRM and EDC weigh all alike."""

    def chosen(*words):
        return RelabelConfig.parse(["--data", "images", "--fkd-path", "labels", *words]).teachers()

    cvdd = chosen("--preset", "cvdd")
    assert cvdd.names == ["resnet18", "resnet50", "shufflenet_v2_x1_0", "mobilenet_v2", "densenet121"]
    expected = torch.tensor([56.4, 42.3, 52.5, 44.2, 40.6]).div(10).softmax(dim=0)
    torch.testing.assert_close(torch.tensor(cvdd.shares), expected)
    assert (cvdd.rule, cvdd.bssl) == ("mean", True)
    assert math.isclose(sum(chosen("--preset", "cvdd", "--candidate-number", "2").shares), 1)
    assert chosen("--preset", "cvdd", "--ensemble-weights", *"11111").shares is None
    assert chosen("--preset", "cvdd", "--ensemble", "norm-mean").shares is None
    fadrm, edc = chosen("--preset", "fadrm"), chosen("--preset", "edc")
    assert (len(fadrm.names), fadrm.shares, fadrm.bssl) == (4, None, True)
    assert (edc.names, edc.bssl) == (["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet"], False)
    assert chosen("--preset", "r18", "--bssl").bssl


def live_words(tiny, committee, target, *more):
    """Return the command line that trains with both teachers live, on cutmix views."""
    words = tiny.flags(target, fkd_path=None, epochs=2, mix_type="cutmix", batch_size=7, loss_type="mse_gt")
    return [*words, "--teacher-model", *committee[0], "--teacher-checkpoint", *committee[1], *more]


@pytest.mark.parametrize("more", [[], ["--ensemble-weights", 1, 3], ["--ensemble", "norm-mean"]], ids=str)
@pytest.mark.usefixtures("small_student")
def test_a_live_committee_trains_as_its_stored_answers(more, tiny, committee, tmp_path):
    """Students are equal bit by bit, so that each step has the loss of the stored answers, which are known."""
    assert run(relabel_FKD, *relabel_words(tiny.train, committee, tmp_path / "labels", *more)).code == 0
    for images, stored in replayed(tiny.train, tmp_path / "labels"):
        logits = torch.stack([build_teacher(name, file)(images) for name, file in zip(*committee, strict=True)])
        shares = [0.25, 0.75] if "--ensemble-weights" in more else [0.5, 0.5]
        expected = shares[0] * logits[0] + shares[1] * logits[1]
        if "norm-mean" in more:
            expected = combine(logits, "norm-mean")
        torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)
    how = {"fkd_path": tmp_path / "labels", "epochs": 2, "batch_size": 7, "loss_type": "mse_gt"}
    stored = tiny.train_run(tmp_path / "fkd", **how)
    done = run(train_KD_parallel, *live_words(tiny, committee, tmp_path / "kd", *more))
    assert done.code == 0, done.err
    live = read_run(tmp_path / "kd")
    assert same_weights(live.weights(), stored.weights())
    assert [one["arch"] for one in live.summary["labels"]["teachers"]] == [CONVNET, "nets.net"]
    assert live.summary["labels"]["teachers"][1]["model_file"] == source_digest(committee[0][1])
    assert ("0.25 x convnet2_w8_bn (" in done.out) == ("--ensemble-weights" in more)


@pytest.mark.usefixtures("small_student")
def test_settings_of_live_teachers(tiny, committee, tmp_path):
    """One teacher is recorded as before there were several, so that earlier runs resume; several are lists."""
    alone = tiny.flags(tmp_path / "one", fkd_path=None, epochs=2)
    alone += ["--teacher-model", CONVNET, "--teacher-checkpoint", committee[1][0]]
    assert run(train_KD_parallel, *alone).code == 0
    args = json.loads((tmp_path / "one" / "args.json").read_text())
    assert (args["teacher_model"], args["teacher_stem"]) == (CONVNET, "standard")
    assert (args["teacher_checkpoint"], args["ensemble"], args["ensemble_weights"]) == (committee[1][0], None, None)
    path = tmp_path / "one" / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    for name in ("ensemble", "ensemble_weights"):  # checkpoints of earlier releases lack them
        del state["arguments"][name]
    torch.save(state, path)
    resumed = run(train_KD_parallel, *alone, "--ensemble", "mean", "--teacher-stem", "standard", "--resume")
    assert resumed.code == 0, resumed.err
    refused = run(train_KD_parallel, *alone, "--ensemble", "main-weighted", "--resume")
    assert (refused.code, "--ensemble was None and is main-weighted" in refused.err) == (2, True), refused.err
    both = live_words(tiny, committee, tmp_path / "two", "--ensemble-weights", 2, 6)
    assert run(train_KD_parallel, *both).code == 0
    args = json.loads((tmp_path / "two" / "args.json").read_text())
    assert args["teacher_model"] == committee[0]
    assert args["ensemble_weights"] == [0.25, 0.75]
    assert run(train_KD_parallel, *both[:-2], 1, 3, "--resume").code == 0
    refused = run(train_KD_parallel, *both[:-2], 1, 1, "--resume")
    assert (refused.code, "--ensemble-weights was" in refused.err) == (2, True), refused.err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--teacher-checkpoint", "a.pth"], "1 --teacher-checkpoint for 2 teachers; give one per teacher"),
        (["--ensemble-weights", 1, 2, 3], "3 --ensemble-weights for 2 teachers; give one per teacher"),
        (["--ensemble-weights", 1, 2, "--ensemble", "norm-mean"], "1.0 2.0 has no effect with --ensemble norm-mean"),
        (["--ensemble-weights", 1, 0], "0 must be above 0"),
        (["--teacher-model", CONVNET, "--teacher-checkpoint", "a.pth", "--ensemble-weights", 1], "with one teacher"),
        (["--teacher-model", CONVNET, "--teacher-checkpoint", "a.pth", "--ensemble", "norm-mean"], "with one teacher"),
        (["--ensemble-weights", "1e308", "1e308"], "--ensemble-weights 1e+308 1e+308: their sum is too large"),
        (["--loss-type", "ce", "--ensemble-weights", 1, 2], "--ensemble-weights has no effect with --loss-type ce"),
        (["--loss-type", "ce", "--ensemble", "mean"], "--ensemble has no effect with --loss-type ce"),
        (["--teacher-stem", "small", "small", "standard"], "3 --teacher-stem for 2 teachers; give one for all, or one"),
        (["--teacher-stem", "small"], f"--teacher-stem small needs a ResNet with conv1 and maxpool, and {CONVNET}"),
        (["--teacher-weights", "DEFAULT"], "--teacher-weights DEFAULT contradicts --teacher-checkpoint"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_contradictions_of_live_teachers(more, sentence, tiny, committee, tmp_path):
    refused = run(train_KD_parallel, *live_words(tiny, committee, tmp_path / "kd", *more))
    assert (refused.code, sentence in refused.err) == (2, True), refused.err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--candidate-number", 2], "--candidate-number has no effect without --preset"),
        (["--ensemble-weights", 1], "1 --ensemble-weights for 2 teachers"),
        (["--stem", "small", "--stem", "standard", "--stem", "small"], "3 --stem for 2 teachers"),
    ],
    ids=str,
)
def test_contradictions_of_stored_teachers(more, sentence, tiny, committee, tmp_path):
    refused = run(relabel_FKD, *relabel_words(tiny.train, committee, tmp_path / "labels", *more))
    assert (refused.code, sentence in refused.err) == (2, True), refused.err


def test_each_teacher_has_its_stem(tiny, committee, tmp_path):
    """A ResNet with a small stem and a ConvNet, which has none, form a committee; grey images fit only one of them."""
    small = build_small(tmp_path / "small.pth")
    teachers = ["--teacher-model", "resnet18", CONVNET, "--teacher-checkpoint", small, committee[1][0]]
    words = [*tiny.flags(tmp_path / "kd", fkd_path=None, dry_run=True), *teachers]
    done = run(train_KD_parallel, *words, "--teacher-stem", "small", "standard")
    assert done.code == 0, done.err
    refused = run(train_KD_parallel, *words)
    assert (refused.code, "does not hold the weights of --teacher-model resnet18" in refused.err) == (2, True)
    with pytest.raises(InputError, match=f"--arch {CONVNET} cannot answer"):
        Ensemble(*committee, "mean", FP32, input_size=SIDE, in_channels=1)


def build_small(path):
    """Write the weights of a ResNet-18 with a small stem and three classes; return the path."""
    torch.save(build_student("resnet18", 3, 0, "small").state_dict(), path)
    return path


def test_rules_that_need_a_whole_batch_need_one_process():
    train_KD_parallel.refuse_shares_of_batches(Namespace(rule="mean"), Namespace(size=2))
    train_KD_parallel.refuse_shares_of_batches(Namespace(rule="norm-mean"), Namespace(size=1))
    with pytest.raises(InputError, match="--ensemble norm-mean takes norms of a whole batch, but each of 2 processes"):
        train_KD_parallel.refuse_shares_of_batches(Namespace(rule="norm-mean"), Namespace(size=2))
