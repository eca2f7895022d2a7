"""Pictures are legible: names are wrapped and never overlap, series differ in grey, and axes end where the run ends."""

import math

import numpy as np
import pytest
import torch
from helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from view_batches import normalise_on

from utils.data import preview
from utils.data.image_sets import open_images
from utils.data.preview import Preview, choose_views
from utils.data.resident import ResidentBatches
from utils.data.workers import ViewDataset
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run import curves
from utils.run.curves import draw_curves, ticks_of, title_of
from utils.run.summary import describe_epoch
from utils.system import plotting
from utils.system.plotting import VERMILION, new_figure, series, style, text_width, wrap


@given(st.text("aW-_/. $", max_size=50), st.floats(0.5, 4))
@settings(max_examples=40, deadline=None)
def test_wrapped_text_keeps_its_letters(text, width):
    """Every line fits, no letter is lost, and a word that fits into a line is never broken."""
    lines = wrap(text, width).replace(r"\$", "$").split("\n")
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(text_width(line) <= width or len(line) == 1 for line in lines)
    words = [word for line in lines for word in line.split()]
    for word in text.split():
        assert text_width(word) > width or word in words


def test_long_words_are_broken_at_their_signs():
    name = "n01440764_tench-tinca/tinca.freshwater"
    lines = wrap(name, 3.2).split("\n")
    assert len(lines) > 1
    assert all(line[-1] in "-_/.,:" for line in lines[:-1])
    assert wrap("iiiiiiiiii", text_width("iiiiiiiiii", 8) + 0.001, 8) == "iiiiiiiiii"
    assert "\n" in wrap("iiiiiiiiii", text_width("iiiiiiiiii", 8) + 0.001, 8, "bold")


def test_series_differ_without_colour():
    """In grey, 18 series differ by marker, and 36 by marker and line style."""
    looks = [series(number) for number in range(36)]
    hollow = [look["markerfacecolor"] == "white" for look in looks]
    markers = [(look["marker"], empty) for look, empty in zip(looks, hollow, strict=True)]
    assert len(set(markers[:18])) == 18
    assert len({(marker, str(look["linestyle"])) for marker, look in zip(markers, looks, strict=True)}) == 36


def test_files_of_a_figure_have_no_date(tmp_path):
    """The same figure gives the same bytes; a user's matplotlibrc has no influence."""
    written = []
    for size in (8, 20):
        with plotting.style():
            import matplotlib

            matplotlib.rcParams["font.size"] = size  # `style` resets this
        with style():
            figure = new_figure(6, 4)
            figure.subplots().plot([1, 2], label="a", **series(0))
        written.append([path.read_bytes() for path in plotting.save(figure, tmp_path / "a.png", ("png", "pdf", "svg"))])
    assert written[0] == written[1]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.pdf", "a.png", "a.svg"]
    for word, content in ((b"Software", 0), (b"CreationDate", 1), (b"<dc:date>", 2)):
        assert word not in written[0][content]


WORDS = [
    "great grey owl, great gray owl, Strix neb",
    "n01440764_tench_tinca_tinca_freshwater_x",
    "Wort-mit-Bindestrichen/und.Punkten_vierz",
    "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW",
    "$x$ and $\\frac{1}{2}$",
]


def made_up(number=16, side=32, classes=5, mixing="mixed by cutmix", channels=3):
    """Return a `Preview` of random images; in every second view, the teacher's best class is the folder's."""
    generator = torch.Generator().manual_seed(1)
    made = object.__new__(Preview)
    made.epochs, made.batches, made.mixing = 300, 1000, mixing
    made.places = [(19 * view, 66 * view, view) for view in range(number)]
    made.images = torch.randint(256, (number, side, side, channels), generator=generator).byte()
    made.targets = torch.arange(number) % classes
    made.partners = made.targets if mixing == "unmixed" else (made.targets + 1) % classes
    made.shares = [None if mixing == "unmixed" else 0.03 + view / 20 for view in range(number)]
    made.logits = torch.full((number, classes), -9.0)
    for view in range(number):
        made.logits[view, (view + 3 * (view % 2)) % classes] = 1
        made.logits[view, (view + 2) % classes] = 0.5
    return made


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that `preview` and `curves` save, with the resolution of their PNG files."""
    figures = []

    def keep(figure, *more, dpi=300, **named):
        paths = plotting.save(figure, *more, dpi=dpi, **named)
        figure.set_dpi(dpi)
        figures.append(figure)
        return paths

    monkeypatch.setattr(preview, "save", keep)
    monkeypatch.setattr(curves, "save", keep)
    return figures


def boxes_of(figure, texts):
    """Return the extents in pixels of texts: [n, 4], (left, bottom, right, top)."""
    with style():
        figure.canvas.draw()
        return np.array([text.get_window_extent(figure.canvas.get_renderer()).extents for text in texts])


def assert_apart(boxes):
    """No two boxes overlap by more than a pixel."""
    for number, one in enumerate(boxes):
        width, height = np.minimum(one[2:], boxes[number + 1 :, 2:]).T - np.maximum(one[:2], boxes[number + 1 :, :2]).T
        assert not ((width > 1) & (height > 1)).any()


@pytest.mark.parametrize(
    "how",
    [{}, {"side": 224, "number": 3}, {"mixing": "unmixed", "channels": 1, "side": 28, "classes": 4}],
    ids=["32 px", "224 px", "grey"],
)
def test_texts_of_views_are_apart_and_marked(how, drawn, tmp_path):
    """Names of 40 letters overlap neither texts nor images; wrong answers are coloured, bold and marked by a sign."""
    made = made_up(**how)
    made.draw(tmp_path / "views.png", WORDS[: made.logits.shape[1]], "images_" * 20, "labels")
    (figure,) = drawn
    boxes = boxes_of(figure, figure.texts)
    panels = np.array([axes.get_window_extent().extents for axes in figure.axes])
    assert_apart(np.concatenate([boxes, panels]))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= np.tile(figure.bbox.size, (len(boxes), 1))).all()
    said = "".join(text.get_text() for text in figure.texts).replace(" ", "")
    assert said.count("epoch20/300,batch67/1000") == 1
    answers = [text for text in figure.texts if text.get_text().startswith("teacher")]
    assert ["≠" in text.get_text() for text in answers] == [view % 2 == 1 for view in range(len(made.images))]
    for text in answers:
        assert ("≠" in text.get_text()) == (text.get_color() == VERMILION) == (text.get_weight() == "bold")


@pytest.mark.parametrize("side", [28, 32, 224, 300])
def test_images_of_views_are_neither_blurred_nor_reduced(side, drawn, tmp_path):
    """Each pixel of a view becomes a square of whole pixels in the picture."""
    made = made_up(5, side)
    made.draw(tmp_path / "views.png", WORDS, "a", "b")
    picture = np.asarray(Image.open(tmp_path / "views.png").convert("RGB"))
    for axes, image in zip(drawn[0].axes, made.images.numpy(), strict=True):
        left, bottom, right, top = np.rint(axes.get_window_extent().extents).astype(int)
        scale = (right - left) // side
        assert scale * side >= 224
        shown = picture[len(picture) - top : len(picture) - bottom, left:right]
        assert np.array_equal(shown, image.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize(
    ("epochs", "images", "batch_size", "most", "views", "batches"),
    [
        (300, 1000, 100, 16, 16, 16),  # four epochs, four batches of each
        (1, 1000, 50, 16, 16, 16),
        (300, 100, 100, 16, 16, 16),  # one batch in an epoch
        (1, 100, 100, 16, 16, 1),
        (1, 5, 10, 16, 5, 1),  # fewer than 16 views
        (3, 5, 2, 16, 14, 9),  # the last batch of an epoch has one image
        (300, 1000, 100, 4, 16, 4),  # a live teacher
        (2, 12, 7, 4, 16, 4),
    ],
)
def test_views_come_from_many_batches(epochs, images, batch_size, most, views, batches):
    """Views of many cutmix boxes, of the first epoch and of the last are shown, none twice."""
    policy = ViewPolicy(0, 32, 0.5, 1.0, "cutmix", 1.0, 1.0)
    source = DrawnViews(policy, images, batch_size)
    chosen = choose_views(ViewDataset([], source, 32), range(7, 7 + epochs), most)
    assert (sum(map(len, chosen.values())), len(chosen)) == (views, batches)
    assert {min(chosen)[0], max(chosen)[0]} == {7, 6 + epochs}
    for (epoch, batch), rows in chosen.items():
        assert sorted(set(rows)) == rows
        assert rows[-1] < source.rows(epoch, batch)


@pytest.mark.parametrize("taught", [False, True])
def test_views_are_those_of_training(taught, tiny):
    """The picture has the images of the training batches; a live teacher answers whole batches."""
    samples = open_images(tiny.train, "--train-dir").samples
    source = DrawnViews(ViewPolicy(0, 32, 0.5, 1.0, "cutmix", 1.0, 1.0), len(samples), 5)
    dataset, normalise = ViewDataset(samples, source, 32), normalise_on(CPU)
    epochs = range(2, 6)

    def teacher(images):
        return images[:, 0, :2, :2].flatten(1) + images.mean()

    made = Preview(dataset, epochs, normalise, teacher if taught else None)
    batches = {
        (epoch, number): batch
        for epoch in epochs
        for number, batch in enumerate(ResidentBatches(dataset, epochs, normalise, 0, CPU).epoch(epoch))
    }
    whole = [batches[epoch, batch].images for epoch, batch, _ in made.places]
    rows = [row for *_, row in made.places]
    own = torch.stack([images[row] for images, row in zip(whole, rows, strict=True)])
    assert torch.equal(made.images, normalise.visible(own))
    assert len(set(made.shares)) >= 4
    assert [batches[epoch, batch].targets[row] for epoch, batch, row in made.places] == made.targets.tolist()
    if taught:
        answers = [teacher(images)[row] for images, row in zip(whole, rows, strict=True)]
        torch.testing.assert_close(made.logits, torch.stack(answers))


def a_run(epochs, every=10, start=0, hard=0, mix="cutmix", top1=99.9):
    """Return the history and the summary of a made-up run."""
    history = [
        {
            "epoch": epoch,
            "lr": 0.001 * (1 - epoch / epochs),
            "train_loss": 3 / (epoch + 1),
            "train_top1": top1,
            "val_loss": 1.0 if epoch % every == 0 or epoch == epochs - 1 else None,
            "val_top1": top1 - abs(epoch - epochs * 0.7) / epochs
            if epoch % every == 0 or epoch == epochs - 1
            else None,
        }
        for epoch in range(start, epochs)
    ]
    evaluated = [row for row in history if row["val_top1"] is not None]
    best = max(evaluated, key=lambda row: row["val_top1"])
    results = {
        name: {"epoch": row["epoch"], "top1": row["val_top1"]}
        for name, row in (("best", best), ("last", evaluated[-1]))
    }
    args = {"model": "resnet18", "seed": 3, "train_dir": "data/new_$set", "epochs": epochs, "hard_epochs": hard or None}
    return history, results | {
        "args": args | {"loss_type": "kl"},
        "labels": {"path": "data/labels_b", "dialect": "packed", "mix_type": mix},
        "validation": {"number": 50_000},
        "evaluated_weights": "of the last step",
    }


def test_the_title_of_curves():
    """It names student, images and labels."""
    args = a_run(1)[1]["args"]
    assert title_of(args, {"path": "data/labels_b"}) == "Student resnet18, seed 3. Images: new_$set. Labels: labels_b."
    assert title_of(args, {"dialect": "hard labels", "teachers": None}).endswith("Labels: hard labels.")
    taught = {"dialect": "live teacher", "teachers": [{"arch": "resnet50"}, {"arch": "vgg11"}]}
    assert title_of(args, taught).endswith("Labels: live teacher resnet50 + vgg11.")


@pytest.mark.parametrize(
    ("epochs", "how"),
    [
        (1, {}),
        (3, {"every": 1}),
        (100, {"start": 50}),
        (300, {"hard": 100, "mix": "none"}),
        (1000, {"hard": 333, "top1": 0.5}),
    ],
)
def test_curves_end_at_the_last_epoch(epochs, how, drawn, tmp_path):
    """Epochs count from 1; no percentage exceeds 100; texts do not overlap; mixed views have no training top-1."""
    history, summary = a_run(epochs, **how)
    paths = draw_curves(tmp_path / "curves.png", history, summary, 1000)
    assert [path.name for path in paths] == ["curves.png", "curves.pdf"]
    (figure,) = drawn
    loss, top1, val_loss, lr, legend = figure.axes
    for panel in (loss, top1, val_loss, lr):
        first = how.get("start", 0) + 1
        assert [panel.get_xticks()[0], panel.get_xticks()[-1]] == [first, epochs]
        assert panel.get_xlim()[1] <= epochs + max(0.5, 0.02 * epochs)
        assert max(max(line.get_xdata()) for line in panel.lines) == epochs
    assert top1.get_ylim()[0] >= 0
    assert top1.get_ylim()[1] <= 100
    texts = [text.get_text() for text in legend.get_legend().get_texts()]
    last, best = summary["last"], summary["best"]
    if last == best:
        assert texts[2] == f"last and best {last['top1']:.2f}% (epoch {epochs})"
    else:
        assert texts[2] == f"last {last['top1']:.2f}% (epoch {epochs})"
        assert texts[3] == f"best {best['top1']:.2f}% (epoch {best['epoch'] + 1})"
    assert texts[-1] == "chance 0.1%"
    training = [line for line in top1.lines if line.get_color() == loss.lines[0].get_color()]
    assert len(training) == (how.get("mix") == "none")
    hard = [math.isnan(value) for line in training for value in line.get_ydata()]
    assert sum(hard) == (how["hard"] if training else 0)
    assert ("hard labels" in [text.get_text() for text in loss.texts]) == ("hard" in how)
    shown = [*figure.texts, figure._suptitle, *legend.get_legend().get_texts()]
    shown += [getattr(panel, name) for panel in (loss, top1, val_loss, lr) for name in ("_left_title",)]
    boxes = boxes_of(figure, [text for text in dict.fromkeys(shown) if text.get_text()])
    assert_apart(boxes)
    assert (boxes >= -1).all()
    assert (boxes[:, 2:] <= np.tile(figure.bbox.size, (len(boxes), 1)) + 1).all()


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (1, 1, [1]),
        (1, 3, [1, 2, 3]),
        (1, 100, [1, 20, 40, 60, 80, 100]),
        (51, 100, [51, 60, 70, 80, 90, 100]),
        (1, 1000, [1, 200, 400, 600, 800, 1000]),
        (1, 1009, [1, 200, 400, 600, 800, 1009]),
    ],
)
def test_ticks(first, last, ticks):
    """The first and the last epoch have a tick; others are round numbers."""
    assert ticks_of(first, last) == ticks


def test_the_log_counts_to_the_last_epoch():
    """`metrics.csv` counts epochs from 0, the log from 1."""
    row = a_run(100)[0][-1] | {"train_images_per_second": 1.0, "val_top5": 1.0}
    assert describe_epoch(row, 100).startswith("epoch 100/100  ")
    assert describe_epoch(row | {"epoch": 0}, 100).startswith("epoch   1/100  ")
