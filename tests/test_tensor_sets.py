"""Sets of tensors and arrays are read unrounded, in order, with their labels; anything else gets one sentence."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import DC_COLOUR, Command
from image_layouts import Loaded
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from utils.data.image_sets import open_images
from utils.data.images import load_image, read_image, soft_labels_of
from utils.data.readers.tensors import recognise
from utils.system.errors import InputError

N, SIDE = 6, 8
CLASSES = [0, 2, 1, 1, 0, 2]


def normal(channels=3, seed=0):
    """Return images with mean 0 and standard deviation 1."""
    return torch.randn(N, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def logits(classes=4):
    return torch.randn(N, classes, generator=torch.Generator().manual_seed(1)) * 3


def save_pair(folder, images, labels, images_name="images_best.pt", labels_name="labels_best.pt"):
    folder.mkdir(exist_ok=True)
    torch.save(images, folder / images_name)
    torch.save(labels, folder / labels_name)
    return folder


def opened(path, part="train", normalised="auto"):
    assert recognise(path)
    return open_images(path, "--train-dir", part, normalised)


def stacked(images):
    """Return all images of a set of floating-point numbers: float32 [N, C, H, W]."""
    return torch.stack([load_image(image, images.channels) for image, _ in images.samples])


def test_a_published_pair_is_read_unrounded(program_log):
    """The images and classes are equal to the file's; the conclusion about normalising is logged with its remedy."""
    images = opened(DC_COLOUR)
    assert torch.equal(stacked(images), torch.load(DC_COLOUR / "images_best.pt"))
    assert images.targets == torch.load(DC_COLOUR / "labels_best.pt").tolist()
    assert images.classes == [str(number) for number in range(10)]
    assert (images.named, images.channels, images.normalised, images.answers) == (False, 3, True, None)
    assert soft_labels_of(images.samples) is None
    assert "50 % of them negative: already normalised (give --normalised no if that is wrong)" in program_log.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("old", [False, True])
def test_every_dtype_and_both_formats_of_pytorch(dtype, old, tmp_path):
    values = normal().to(dtype).requires_grad_()
    torch.save(torch.nn.Parameter(values), tmp_path / "images.pt", _use_new_zipfile_serialization=not old)
    torch.save(torch.tensor(CLASSES), tmp_path / "labels.pt", _use_new_zipfile_serialization=not old)
    assert torch.equal(stacked(opened(tmp_path)), values.detach().float())


def test_a_tensor_that_lay_on_a_gpu(tmp_path):
    """The device in the file does not matter."""
    folder = save_pair(tmp_path, normal(), torch.tensor(CLASSES))
    torch.save(normal(), folder / "images_best.pt", _use_new_zipfile_serialization=False)
    content = (folder / "images_best.pt").read_bytes()
    assert content.count(b"X\x03\x00\x00\x00cpu") == 1
    (folder / "images_best.pt").write_bytes(content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert torch.equal(stacked(opened(folder)), normal())


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (logits(), "logits"),
        (logits().double().softmax(1), "probabilities"),
        (logits().softmax(1).half(), "probabilities"),
    ],
)
def test_soft_labels(labels, kind, tmp_path):
    """The class is that of the largest number, and the table is kept."""
    images = opened(save_pair(tmp_path, normal(), labels))
    assert images.answers == kind
    assert len(images.classes) == 4
    assert images.targets == labels.argmax(1).tolist()
    assert torch.equal(soft_labels_of(images.samples), labels.float())


def test_probabilities_must_add_up_to_one(tmp_path):
    """Numbers that are not negative, but do not add up to 1, are logits."""
    table = logits().softmax(1)
    table[2, 0] += 0.01
    assert opened(save_pair(tmp_path, normal(), table)).answers == "logits"


@pytest.mark.parametrize(
    "labels", [torch.tensor(CLASSES, dtype=torch.uint8), torch.tensor(CLASSES).float(), torch.tensor(CLASSES)[:, None]]
)
def test_classes_of_other_types_and_shapes(labels, tmp_path):
    images = opened(save_pair(tmp_path, normal(), labels))
    assert (images.targets, images.classes, images.answers) == (CLASSES, ["0", "1", "2"], None)


@pytest.mark.parametrize(
    ("values", "channels"),
    [(normal(1), 1), (normal(1)[:, 0], 1), (normal().permute(0, 2, 3, 1), 3), (normal(1).permute(0, 2, 3, 1), 1)],
)
def test_layouts_of_the_axes(values, channels, tmp_path):
    images = opened(save_pair(tmp_path, values, torch.tensor(CLASSES)))
    assert images.channels == channels
    assert torch.equal(stacked(images), normal(channels))


@pytest.mark.parametrize("shape", [(N, 1, 3, 3), (N, 4, 8, 8), (N, 3, 8, 1), (N, 192), (0, 3, 8, 8), (N, 3, 8, 8, 1)])
def test_other_shapes_are_refused(shape, tmp_path):
    with pytest.raises(InputError, match=r"images_best\.pt has the shape \[.*\[N, C, H, W\]"):
        opened(save_pair(tmp_path, torch.rand(shape), torch.tensor(CLASSES)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("channels", [1, 3])
def test_eight_bit_pixels_are_pil_images(dtype, channels, tmp_path):
    values = torch.randint(0, 256, (N, channels, SIDE, SIDE + 1), generator=torch.Generator().manual_seed(0)).to(dtype)
    images = opened(save_pair(tmp_path, values, torch.tensor(CLASSES)), normalised="yes")
    assert (images.values, images.channels, images.normalised) == ("bytes", channels, False)
    for (image, _), pixels in zip(images.samples, values, strict=True):
        loaded = load_image(image, channels)
        assert (loaded.mode, loaded.size) == ("L" if channels == 1 else "RGB", (SIDE + 1, SIDE))
        assert np.array_equal(np.asarray(loaded).reshape(SIDE, SIDE + 1, channels), pixels.permute(1, 2, 0))
        assert image.container.size(0) == loaded.size
        assert len(read_image(image)) == image.container.num_bytes(0) == pixels.numel()


def digits(spread):
    """Return images of digits in [0, 1] that were distilled: a background around 0, and a few bright pixels."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 1, 28, 28, generator=generator) * spread
    values[:, :, 10:18, 8:20] += 0.9
    return values


def natural():
    """Return images in [0, 1] with overshoot, from about -0.3 to 1.4."""
    return torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.25 + 0.5


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (natural().clamp(0, 1), False),
        (natural(), False),
        (digits(0.05), False),  # 40 % of the values are negative
        (digits(0.0), False),
        ((natural().clamp(0, 1) - 0.48) / 0.25, True),
        ((digits(0.0).clamp(0, 1) - 0.1307) / 0.3081, True),
        (torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.28, True),  # ZCA with eps 0.1
        (natural() * 2 - 1, True),
        (torch.zeros(20, 1, 8, 8), False),
    ],
)
def test_whether_images_are_normalised(images, expected, tmp_path):
    folder = save_pair(tmp_path, images, torch.arange(20))
    assert opened(folder).normalised is expected
    assert opened(folder, normalised="yes").normalised is True
    assert opened(folder, normalised="no").normalised is False
    assert torch.equal(stacked(opened(folder, normalised="no")), images)


def test_values_up_to_255_are_divided(tmp_path, program_log):
    values = natural().clamp(0, 1) * 255
    images = opened(save_pair(tmp_path, values, torch.arange(20)))
    assert images.values == "unit"
    assert torch.equal(stacked(images), values / 255)
    assert "divided by 255" in program_log.text
    assert torch.equal(stacked(opened(tmp_path, normalised="yes")), values)
    save_pair(tmp_path, values - 120, torch.arange(20))
    with pytest.raises(InputError, match=r"values from -120 to 135.*--normalised yes"):
        opened(tmp_path)


def test_the_experiments_of_dc(tmp_path, program_log):
    """The last experiment is taken, as DC-BENCH does; accuracies in numpy numbers do not matter."""
    data = [[normal(seed=seed), torch.tensor(CLASSES).roll(seed)] for seed in range(3)]
    path = tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt"
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, path)
    for place in (path, tmp_path):
        images = opened(place)
        assert torch.equal(stacked(images), data[2][0])
        assert images.targets == data[2][1].tolist()
    assert "3 experiments: the last is taken" in program_log.text
    torch.save({"data": data[0]}, path)  # some copies hold one pair
    assert torch.equal(stacked(opened(path)), data[0][0])


@pytest.mark.parametrize(
    "content",
    [
        {"dataset": "cifar100", "data": normal(), "label": torch.tensor(CLASSES)[:, None]},  # GIFT
        [normal(), torch.tensor(CLASSES)],  # IDC
        {"images": normal().numpy(), "labels": CLASSES},
    ],
)
def test_one_file_with_both(content, tmp_path):
    torch.save(content, tmp_path / "data.pt")
    for place in (tmp_path / "data.pt", tmp_path):
        images = opened(place)
        assert torch.equal(stacked(images), normal())
        assert images.targets == CLASSES


@pytest.mark.parametrize("order", ["C", "F", ">f4"])
def test_arrays_of_numpy(order, tmp_path):
    values = normal().numpy()
    values = np.asfortranarray(values) if order == "F" else values.astype(">f4") if order == ">f4" else values
    for images_name, labels_name in (("images.npy", "labels.npy"), ("X.npy", "y.npy")):
        folder = tmp_path / images_name
        folder.mkdir()
        np.save(folder / images_name, values)
        np.save(folder / labels_name, np.array(CLASSES, np.uint16))
        for place in (folder, folder / images_name):
            images = opened(place)
            assert torch.equal(stacked(images), normal())
            assert images.targets == CLASSES


def write_npz(path, arrays):
    np.savez_compressed(path, **{name: array.numpy() for name, array in arrays.items()})


def write_safetensors(path, arrays):
    save_file({name: array.contiguous() for name, array in arrays.items()}, path)


@pytest.mark.parametrize(("suffix", "write"), [(".npz", write_npz), (".safetensors", write_safetensors)])
@pytest.mark.parametrize(("image", "label"), [("images", "labels"), ("X", "y"), ("data", "label"), ("image", "target")])
def test_files_of_named_arrays(suffix, write, image, label, tmp_path):
    write(tmp_path / f"set{suffix}", {"other": logits(), image: normal(), label: torch.tensor(CLASSES)})
    for place in (tmp_path, tmp_path / f"set{suffix}"):
        images = opened(place)
        assert torch.equal(stacked(images), normal())
        assert images.targets == CLASSES


@pytest.mark.parametrize(("suffix", "write"), [(".npz", write_npz), (".safetensors", write_safetensors)])
@pytest.mark.parametrize("pattern", ["{}_train", "train_{}"])
def test_files_with_several_parts(suffix, write, pattern, tmp_path, program_log):
    """Keras and MedMNIST name arrays in this way."""
    path = tmp_path / f"mnist{suffix}"
    arrays = {}
    for seed, part in enumerate(("train", "test")):
        arrays[pattern.format("x").replace("train", part)] = normal(seed=seed)
        arrays[pattern.format("y").replace("train", part)] = torch.tensor(CLASSES).roll(seed)
    write(path, arrays)
    for seed, part in enumerate(("train", "val")):
        images = opened(path, part)
        assert torch.equal(stacked(images), normal(seed=seed))
        assert images.targets == torch.tensor(CLASSES).roll(seed).tolist()
    assert "holds the parts test, train: --train-dir takes test" in program_log.text


def test_files_of_several_parts(tmp_path):
    for seed, part in enumerate(("train", "test")):
        np.save(tmp_path / f"X_{part}.npy", normal(seed=seed).numpy())
        np.save(tmp_path / f"y_{part}.npy", np.array(CLASSES))
    assert torch.equal(stacked(opened(tmp_path)), normal(seed=0))
    assert torch.equal(stacked(opened(tmp_path, "val")), normal(seed=1))
    (tmp_path / "X_test.npy").unlink()
    with pytest.raises(InputError, match=r"--train-dir .* holds no val part, only X_train\.npy"):
        opened(tmp_path, "val")


def test_the_best_of_several_is_taken(tmp_path, program_log):
    """Best, then the highest number; a file without labels, as MTT's images_zca_20.pt, does not count."""
    for seed, step in enumerate((9, 10)):
        save_pair(tmp_path, normal(seed=seed), torch.tensor(CLASSES), f"images_{step}.pt", f"labels_{step}.pt")
    torch.save(normal(seed=7), tmp_path / "images_zca_20.pt")
    assert torch.equal(stacked(opened(tmp_path)), normal(seed=1))
    assert "uses images_10.pt" in program_log.text
    save_pair(tmp_path, normal(seed=2), torch.tensor(CLASSES))
    assert torch.equal(stacked(opened(tmp_path)), normal(seed=2))
    assert torch.equal(stacked(opened(tmp_path / "images_9.pt")), normal(seed=0))


def test_several_experiments_of_dc_in_a_folder(tmp_path):
    for ipc in (1, 10):
        torch.save({"data": [[normal(), torch.tensor(CLASSES)]]}, tmp_path / f"res_DC_CIFAR10_ConvNet_{ipc}ipc.pt")
    with pytest.raises(InputError, match=r"several sets; give one of the files res_DC_CIFAR10_ConvNet_10ipc\.pt"):
        opened(tmp_path)


@pytest.mark.parametrize("rate", [0.0213, torch.tensor(0.0213), torch.tensor([0.0213], requires_grad=True)])
def test_the_learning_rate_is_logged(rate, tmp_path, program_log):
    save_pair(tmp_path, normal(), torch.tensor(CLASSES))
    torch.save(rate, tmp_path / "lr_best.pt")
    opened(tmp_path)
    assert "learning rate of 0.0213; say -lr 0.0213 to train with it" in program_log.text


def test_labels_that_are_missing(tmp_path):
    torch.save(normal(), tmp_path / "images_best.pt")
    for place in (tmp_path, tmp_path / "images_best.pt"):
        with pytest.raises(InputError, match=r"images_best\.pt holds images without labels; put labels_best\.pt"):
            opened(place)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor(CLASSES[1:]), "holds 5 labels, but there are 6 images"),
        (torch.tensor([-1, *CLASSES[1:]]), "holds the label -1"),
        (torch.tensor([2**62, *CLASSES[1:]]), "holds the label 4.6"),
        (torch.tensor([0.5, *CLASSES[1:]]), "holds the label 0.5"),
        (logits() / 0, "NaN or infinite labels"),
        (logits()[:, :, None, None], r"shape \[6, 4, 1, 1\]"),
        (torch.zeros(N, 100_001), "100001 classes"),
        (torch.tensor(CLASSES, dtype=torch.complex64), "are no array of numbers|ComplexFloatStorage"),
        ("0 1 2 0 1 2", "are no array of numbers"),
    ],
)
def test_wrong_labels(labels, problem, tmp_path):
    with pytest.raises(InputError, match=rf"labels_best\.pt.*({problem})"):
        opened(save_pair(tmp_path, normal(), labels))


def with_value(value):
    images = normal()
    images[4, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (with_value(float("nan")), "image 4 holds NaN"),
        (with_value(float("-inf")), "image 4 holds NaN or infinite"),
        (torch.full((N, 3, 8, 8), 256), "integers from 256 to 256"),
        (torch.full((N, 3, 8, 8), -1), "integers from -1 to -1"),
        (torch.ones(N, 3, 8, 8, dtype=torch.bool), "save it in 8 bits"),
        ({"weight": normal()}, "holds weight, none named as images with labels"),
        ({}, "holds nothing, none named as images with labels"),
        ([1, 2], "does not hold images with labels"),
        (3.0, "does not hold images with labels"),
    ],
)
def test_wrong_images(images, problem, tmp_path):
    with pytest.raises(InputError, match=rf"images_best\.pt.*{problem}"):
        opened(save_pair(tmp_path, images, torch.tensor(CLASSES)))


@pytest.mark.parametrize("name", ["images_best.pt", "set.npz", "set.safetensors", "images.npy"])
def test_damaged_files(name, tmp_path):
    save_pair(tmp_path, normal(), torch.tensor(CLASSES))
    arrays = {"images": normal(), "labels": torch.tensor(CLASSES)}
    write_npz(tmp_path / "set.npz", arrays)
    write_safetensors(tmp_path / "set.safetensors", arrays)
    np.save(tmp_path / "images.npy", normal().numpy())
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=rf"{name} .*copy"):
        open_images(path, "--train-dir")


def test_nothing_is_run(tmp_path):
    trace = tmp_path / "ran"
    torch.save({"data": normal(), "label": torch.tensor(CLASSES), "extra": Command(trace)}, tmp_path / "data.pt")
    with pytest.raises(InputError, match=r"data\.pt is refused.*system"):
        opened(tmp_path)
    array = np.empty(N, object)
    array[:] = Command(trace)
    np.save(tmp_path / "images.npy", array, allow_pickle=True)
    np.savez(tmp_path / "set.npz", images=array, labels=array)
    for name in ("images.npy", "set.npz"):
        with pytest.raises(InputError, match=name):
            open_images(tmp_path / name, "--train-dir")
    assert not trace.exists()
    np.load(tmp_path / "images.npy", allow_pickle=True)  # numpy alone would run the command
    assert trace.exists()


def test_other_places_are_not_tensors(tmp_path):
    """Neither folders of images, nor labels, nor a folder of classes with arrays beside them."""
    assert not recognise(tmp_path)
    assert not recognise(tmp_path / "absent")
    assert not recognise(Path(__file__))
    assert not recognise(Path(__file__).parent / "data" / "packed_v2" / "top3_8")
    (tmp_path / "class_0").mkdir()
    write_npz(tmp_path / "statistics.npz", {"images": normal(), "labels": torch.tensor(CLASSES)})
    torch.save({}, tmp_path / "data.pt")
    assert not recognise(tmp_path)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_images(context, tmp_path):
    images = opened(save_pair(tmp_path, normal(), torch.tensor(CLASSES)))
    loader = DataLoader(Loaded(images), 2, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), normal())


def test_a_reference_can_be_pickled(tmp_path):
    images = opened(save_pair(tmp_path, normal(), logits()))
    image = pickle.loads(pickle.dumps(images.samples[3][0]))
    assert str(image) == str(images.samples[3][0]) == f"{tmp_path / 'images_best.pt'}: 3"
    assert torch.equal(load_image(image), normal()[3])
    assert torch.equal(image.container.soft_labels, logits())
