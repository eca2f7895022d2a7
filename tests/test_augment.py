"""Augmentations compute what the formulas of their sources say, and draw with the right probabilities."""

import io
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import make_images
from torch.nn import functional as F

import train_KD_parallel
from utils.config import DSA_OPERATIONS, DSA_PARAMETERS, Findings, FKDConfig, KDConfig
from utils.data.augment import (
    DSA_COLUMNS,
    Dsa,
    ImagenetHard,
    augmentation_of,
    resample,
    rotate,
)
from utils.labels.views import CROP_DRAWS
from utils.run import preflight
from utils.run.preflight import view_policy
from utils.system.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 16
# principal components of the colours of ImageNet's training images, as fb.resnet.torch published them
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def noise(rows=6, channels=3, side=SIDE):
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(rows))


def columns_of(augmentation, drawn):
    """Return the drawn values of each operation of DSA by name."""
    values = drawn[:, len(augmentation.order) :].split(list(DSA_COLUMNS.values()), dim=1)
    return dict(zip(DSA_COLUMNS, values, strict=True))


def only(operation, side=SIDE, **parameters):
    """Return the augmentation with one operation, drawn parameters of six images, and the values of the operation."""
    augmentation = Dsa(3, side, operation, parameters=parameters)
    drawn = augmentation.draw(1, 2, 6)
    return augmentation, drawn, columns_of(augmentation, drawn)[operation].tolist()


def both(seed=3):
    """Return DSA with all operations in every batch, and the augmentation of IDC."""
    return [Dsa(seed, SIDE, mode="all"), ImagenetHard(seed, MEAN, STD, "cpu")]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_pads_with_zeros_and_shifts(channels):
    augmentation, drawn, steps = only("crop")
    images = noise(channels=channels)
    padded = F.pad(images, [2] * 4)  # 2 is an eighth of 16
    wanted = [
        padded[row, :, 2 + int(y) : 2 + int(y) + SIDE, 2 + int(x) : 2 + int(x) + SIDE]
        for row, (y, x) in enumerate(steps)
    ]
    assert torch.equal(augmentation(images, drawn), torch.stack(wanted))
    assert len({tuple(step) for step in steps}) > 1  # each image has its own numbers


@pytest.mark.parametrize(
    ("side", "share", "hole"), [(16, 0.5, 8), (15, 0.5, 8), (16, 0.3, 5), (16, 0.0, 0), (16, 1.0, 16)]
)
def test_a_cutout_is_a_clipped_square(side, share, hole):
    """Its centre lies anywhere in the image, so that at most three quarters of it fall outside."""
    augmentation = Dsa(3, side, "cutout", parameters={"ratio_cutout": share})
    drawn = augmentation.draw(0, 0, 500)
    removed = augmentation(torch.ones(500, 1, side, side), drawn)[:, 0] == 0
    areas = removed.sum(dim=(1, 2))
    for mask, (top, left) in zip(removed[:50], columns_of(augmentation, drawn)["cutout"].tolist(), strict=False):
        wanted = torch.zeros(side, side, dtype=torch.bool)
        wanted[max(int(top), 0) : max(int(top) + hole, 0), max(int(left), 0) : max(int(left) + hole, 0)] = True
        assert torch.equal(mask, wanted)
    assert areas.max() == hole**2
    assert areas.min() == ((hole + 1) // 2) ** 2
    starts = columns_of(augmentation, drawn)["cutout"] + hole // 2
    assert (starts.min(), starts.max()) == (0, side - hole % 2)


def test_a_flip_mirrors_left_to_right():
    augmentation, drawn, mirrored = only("flip")
    images = noise()
    wanted = [image.flip(2) if yes else image for image, (yes,) in zip(images, mirrored, strict=True)]
    assert torch.equal(augmentation(images, drawn), torch.stack(wanted))
    assert len({yes for (yes,) in mirrored}) == 2
    never, drawn, _ = only("flip", prob_flip=0)
    assert torch.equal(never(images, drawn), images)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
@pytest.mark.parametrize("channels", [1, 3])
def test_affine_operations_sample_as_pytorch_does(operation, channels):
    """The matrices are those of DSA's code."""
    augmentation, drawn, values = only(operation)
    images = noise(channels=channels)
    if operation == "scale":
        matrices = [[[x, 0, 0], [0, y, 0]] for x, y in values]
    else:
        matrices = [[[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0]] for (t,) in values]
    grid = F.affine_grid(torch.tensor(matrices), list(images.shape), align_corners=False)
    wanted = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(augmentation(images, drawn), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - images).abs().max() > 0.1


def test_a_quarter_turn():
    images = noise()
    turned = rotate(images, torch.full((6, 1), math.pi / 2))
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-5, rtol=1e-5)
    identity = torch.tensor([[1.0, 0, 0, 1]]).expand(6, 4)
    torch.testing.assert_close(resample(images, identity), images, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_changes_brightness_then_saturation_then_contrast(channels):
    augmentation, drawn, values = only("color")
    images = noise(channels=channels)
    wanted = []
    for image, (brightness, saturation, contrast) in zip(images.double().numpy(), values, strict=True):
        image = image + brightness
        pixel = image.mean(axis=0)
        image = pixel + saturation * (image - pixel)
        wanted.append(image.mean() + contrast * (image - image.mean()))
    np.testing.assert_allclose(augmentation(images, drawn), np.stack(wanted), atol=1e-5)


def test_a_batch_gets_one_operation_and_each_image_its_numbers():
    """DSA, DM and MTT draw one operation for a whole batch in their evaluations, all with the same probability."""
    augmentation = Dsa(3, SIDE)
    counts = Counter()
    for batch in range(600):
        drawn = augmentation.draw(0, batch, 2)
        used = drawn[:, :6]
        assert torch.equal(used[0], used[1])
        assert used[0].sum() == 1
        assert not torch.equal(drawn[0], drawn[1])
        counts[int(used[0].argmax())] += 1
    assert set(counts) == set(range(6))
    assert all(70 < count < 130 for count in counts.values())  # 100 on average, with a deviation of 9


def test_all_operations_in_the_order_of_the_strategy():
    images = noise()
    for strategy in ("crop_rotate_color", "color_rotate_crop"):
        together = Dsa(3, SIDE, strategy, "all")
        drawn = together.draw(0, 0, 6)
        wanted = images
        for operation in strategy.split("_"):
            alone = Dsa(3, SIDE, operation)
            wanted = alone(wanted, torch.cat([torch.ones(6, 1), drawn[:, 3:]], dim=1))
        assert torch.equal(together(images, drawn), wanted)


def test_gifts_form():
    """Flip and color, one of the others, cutout; an operation that the strategy does not name is left out."""
    augmentation = Dsa(3, SIDE, mode="gift")
    assert augmentation.order == ["flip", "color", "crop", "scale", "rotate", "cutout"]
    used = torch.stack([augmentation.draw(0, batch, 1)[0, :6] for batch in range(300)])
    assert (used[:, [0, 1, 5]] == 1).all()
    assert (used[:, 2:5].sum(dim=1) == 1).all()
    assert (used[:, 2:5].mean(dim=0) > 0.25).all()
    assert Dsa(3, SIDE, "cutout_flip", "gift").draw(0, 0, 1)[0, :2].tolist() == [1, 1]


def test_draws_have_the_distributions_of_dsa():
    augmentation = Dsa(3, 32)
    values = columns_of(augmentation, augmentation.draw(0, 0, 20000))
    ranges = {"color": [(-0.5, 0.5), (0, 2), (0.5, 1.5)], "scale": [(1 / 1.2, 1.2)] * 2}
    ranges["rotate"] = [(-math.pi / 12, math.pi / 12)]
    for name, limits in ranges.items():
        for column, (low, high) in zip(values[name].T, limits, strict=True):
            assert low <= column.min() < low + 0.01 * (high - low)
            assert high - 0.01 * (high - low) < column.max() <= high + 1e-6
            assert column.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert set(values["crop"].flatten().tolist()) == set(range(-4, 5))
    assert set(values["cutout"].flatten().tolist()) == set(range(-8, 25))
    assert values["flip"].mean() == pytest.approx(0.5, abs=0.02)


def test_changed_parameters_change_the_draws():
    changed = Dsa(3, 32, parameters={"prob_flip": 1, "ratio_crop_pad": 0.25, "ratio_rotate": 0, "contrast": 0})
    values = columns_of(changed, changed.draw(0, 0, 2000))
    assert values["flip"].min() == 1
    assert values["crop"].abs().max() == 8
    assert values["rotate"].abs().max() == 0
    assert values["color"][:, 2].min() < 0.01


@pytest.mark.parametrize("number", [0, 1], ids=["dsa", "imagenet-hard"])
def test_draws_depend_on_seed_epoch_and_batch_alone(number):
    augmentation, again, other = (both(seed)[number] for seed in (3, 3, 4))
    drawn = augmentation.draw(5, 7, 4)
    assert drawn.dtype == torch.float32
    again.draw(0, 0, 9)
    assert torch.equal(again.draw(5, 7, 4), drawn)
    for epoch, batch in ((5, 8), (6, 7), (7, 5)):
        assert not torch.equal(augmentation.draw(epoch, batch, 4), drawn)
    assert not torch.equal(other.draw(5, 7, 4), drawn)


@pytest.mark.parametrize("augmentation", both(), ids=["dsa", "imagenet-hard"])
def test_a_part_of_a_batch_is_a_part_of_the_result(augmentation):
    """Ranks share a batch. The given images stay as they are."""
    images = noise()
    before = images.clone()
    drawn = augmentation.draw(0, 0, 6)
    whole = augmentation(images, drawn)
    assert torch.equal(images, before)
    assert (whole - images).abs().max() > 0.1
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(augmentation(images[rows], drawn[rows]), whole[rows])


def test_an_unused_operation_changes_nothing():
    """Rows in which it is not used stay as they are, bit by bit, beside rows in which it is."""
    augmentation = Dsa(3, SIDE, mode="all")
    drawn = augmentation.draw(0, 0, 6)
    drawn[::2, :6] = 0
    images = noise()
    assert torch.equal(augmentation(images, drawn)[::2], images[::2])
    assert not torch.equal(augmentation(images, drawn)[1], images[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["dsa", "imagenet-hard"])
def test_nothing_waits_for_the_device(name, channels):
    """Tensors without values do: shapes and branches do not depend on values, so a CUDA graph can capture the calls."""
    hard = ImagenetHard(3, MEAN[:channels], STD[:channels], "meta")
    augmentation = hard if name == "imagenet-hard" else Dsa(3, SIDE)
    images = noise(channels=channels).to("meta")
    assert augmentation(images, augmentation.draw(0, 0, 6).to("meta")).shape == images.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_zero_changes_nothing(channels):
    augmentation = ImagenetHard(3, MEAN[:channels], STD[:channels], "cpu", jitter=0, lighting=0)
    images = noise(channels=channels)
    torch.testing.assert_close(augmentation(images, augmentation.draw(0, 0, 6)), images, atol=1e-5, rtol=1e-5)
    stronger = ImagenetHard(3, MEAN[:channels], STD[:channels], "cpu", jitter=0.01, lighting=0)
    assert (stronger(images, stronger.draw(0, 0, 6)) - images).abs().max() > 1e-3


def test_lighting_adds_the_principal_components():
    """The formula of the sources, for each channel of images in [0, 1]."""
    augmentation = ImagenetHard(3, MEAN, STD, "cpu", jitter=0)
    drawn = augmentation.draw(0, 0, 6)
    rng = np.random.default_rng((3, 0, 0, 2))
    rng.permuted(np.tile(np.arange(3), (6, 1)), axis=1), rng.uniform(0, 0, (6, 3))
    normal = rng.normal(0, 0.1, (6, 3))
    images = noise()
    wanted = images.double().numpy()
    for row in range(6):
        for i in range(3):
            added = sum(EIGENVECTORS[i][j] * normal[row, j] * EIGENVALUES[j] for j in range(3))
            wanted[row, i] += added / STD[i]
    np.testing.assert_allclose(augmentation(images, drawn), wanted, atol=1e-5)
    vectors = np.array(EIGENVECTORS)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-4)
    deviation = augmentation.draw(0, 0, 20000)[:, 6:].std(dim=0)
    known = [0.1 * math.sqrt(sum((v * e) ** 2 for v, e in zip(row, EIGENVALUES, strict=True))) for row in EIGENVECTORS]
    assert deviation.tolist() == pytest.approx(known, rel=0.03)


def test_colour_jitter_takes_three_steps_in_a_random_order():
    """Each step moves the image towards black, its mean grey, or its grey image."""
    augmentation = ImagenetHard(3, MEAN, STD, "cpu", lighting=0)
    drawn = augmentation.draw(0, 0, 40)
    images = noise(40)
    mean, std = (np.array(one)[:, None, None] for one in (MEAN, STD))
    wanted = []
    for image, (*order, a, b, c) in zip(images.double().numpy(), drawn[:, :6].tolist(), strict=True):
        x = image * std + mean
        for step, strength in zip(order, (a, b, c), strict=True):
            grey = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
            g = {0: 0 * grey, 1: 0 * grey + grey.mean(), 2: grey}[step]
            x = x + strength * (g - x)
        wanted.append((x - mean) / std)
    np.testing.assert_allclose(augmentation(images, drawn), np.stack(wanted), atol=1e-5)
    many = augmentation.draw(0, 0, 12000)
    orders = Counter(map(tuple, many[:, :3].tolist()))
    assert len(orders) == 6
    assert all(1800 < count < 2200 for count in orders.values())
    strengths = many[:, 3:6]
    assert -0.4 <= strengths.min() < -0.39
    assert 0.39 < strengths.max() <= 0.4
    assert strengths.mean() == pytest.approx(0, abs=0.01)


def test_one_channel_is_the_grey_of_three():
    """A grey image gets the values that it has as red, green and blue at once, turned to grey afterwards."""
    grey = torch.rand(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    one, three = (ImagenetHard(3, [0.0] * n, [1.0] * n, "cpu") for n in (1, 3))
    colours = three(grey.expand(8, 3, SIDE, SIDE), three.draw(1, 1, 8))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    wanted = (weights * colours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(one(grey, one.draw(1, 1, 8)), wanted)


FOLDERS = ["--train-dir", "images", "--val-dir", "val", "--input-size", "32"]


def parsed(flags):
    config = KDConfig.parse(FOLDERS + flags.split())
    return config, view_policy(config, Findings(input_size=32))


def test_whole_images_without_flips():
    """--augment none and dsa show the image as it is; rrc, the default, crops."""
    draws = np.random.default_rng(0).random((50, CROP_DRAWS))
    sizes = np.random.default_rng(1).integers(20, 60, (50, 2))
    for augment in ("none", "dsa"):
        _, policy = parsed(f"--augment {augment}")
        wanted = np.concatenate([np.zeros((50, 2)), sizes, np.zeros((50, 1))], axis=1)
        assert np.array_equal(policy.crops(draws, sizes), wanted)
        assert (policy.min_scale, policy.hflip, policy.mix_type) == (1, 0, "none")
    _, policy = parsed("")
    assert (policy.min_scale, policy.max_scale, policy.hflip, policy.mix_type) == (0.08, 1, 0.5, "none")
    crops = policy.crops(draws, sizes)
    assert crops[:, 4].mean() == pytest.approx(0.5, abs=0.2)
    assert not np.array_equal(crops[:, 2:4], sizes)


@pytest.mark.parametrize("augment", ["dsa", "none"])
def test_cells_in_place_of_whole_images(augment):
    """With F = 3, 8 of 9 views show one of 9 cells, each as often as the others, rounded down to whole pixels."""
    _, policy = parsed(f"--augment {augment} --factor-crop 3")
    sizes = np.tile([32, 65], (9000, 1))
    crops = policy.crops(policy.draw_crops(0, 0, 9000), sizes)
    seen = Counter(map(tuple, crops.tolist()))
    cells = {(10 * row, 21 * column, 10, 21, 0) for row in range(3) for column in range(3)}
    assert seen.keys() == cells | {(0, 0, 32, 65, 0)}
    assert all(790 < seen[cell] < 990 for cell in cells)  # 9000 · 8/9 · 1/9 = 889
    assert policy.crops(policy.draw_crops(0, 0, 9), np.tile([2, 1], (9, 1)))[:, 2:4].min() == 1


def test_a_factor_for_random_crops_is_refused():
    with pytest.raises(InputError, match="--factor-crop has no effect without --augment dsa or --augment none"):
        parsed("--factor-crop 2")


def test_views_of_imagenet_hard():
    """Half of the central square and more, flips and cutmix with a uniform ratio; flags change the defaults."""
    _, policy = parsed("--augment imagenet-hard")
    assert (policy.min_scale, policy.max_scale, policy.hflip) == (0.5, 1, 0.5)
    assert (policy.mix_type, policy.cutmix_alpha) == ("cutmix", 1)
    sizes = np.tile([300, 500], (200, 1))
    crops = policy.crops(policy.draw_crops(0, 0, 200), sizes)
    top, left, height, width, flipped = crops.T
    assert (top.min(), (top + height).max()) == (0, 300)
    assert left.min() >= 100
    assert (left + width).max() <= 400
    areas = height * width / 300**2
    assert areas.min() == pytest.approx(0.5, abs=0.05)
    assert areas.max() > 0.9
    assert flipped.mean() == pytest.approx(0.5, abs=0.15)
    _, policy = parsed("--augment imagenet-hard --mix-type None --min-scale-crops 0.3 --hflip 0")
    assert (policy.mix_type, policy.min_scale, policy.hflip) == ("none", 0.3, 0)


def test_flags_choose_the_augmentation():
    found = Findings(input_size=32, mean=(0.5,), std=(0.25,))
    assert augmentation_of(parsed("")[0], found) is None
    assert augmentation_of(parsed("--augment none")[0], found) is None
    assert augmentation_of(FKDConfig.parse([*FOLDERS, "--fkd-path", "labels"]), found) is None
    hard = augmentation_of(parsed("--augment imagenet-hard --fkd-seed 7")[0], found)
    assert isinstance(hard, ImagenetHard)
    assert (hard.seed, hard.channels) == (7, 1)
    config, _ = parsed("--augment dsa --dsa-strategy crop_flip --dsa-mode all --dsa-param prob_flip=1 ratio_scale=2")
    dsa = augmentation_of(config, found)
    assert (dsa.order, dsa.size, dsa.seed) == (["crop", "flip"], 32, 42)
    assert dsa.draw(0, 0, 1)[0, :2].tolist() == [1, 1]
    assert dsa.parameters == DSA_PARAMETERS | {"prob_flip": 1, "ratio_scale": 2}
    assert config.settings()["dsa_param"][:2] == ("prob_flip=1.0", "ratio_scale=2.0")
    plain, _ = parsed("--augment dsa")
    assert (plain.dsa_strategy, plain.dsa_mode) == ("_".join(DSA_OPERATIONS), "single")
    assert augmentation_of(plain, found).parameters == DSA_PARAMETERS


class TensorDevices(pickle.Pickler):
    """Pickler that notes the device of each tensor in what it pickles, such as a dataset for worker processes."""

    def __init__(self, file):
        super().__init__(file)
        self.devices = set()

    def persistent_id(self, value):
        """Note the device of a tensor, and pickle the tensor as usual."""
        if isinstance(value, torch.Tensor):
            self.devices.add(value.device.type)


def test_views_for_worker_processes_stay_on_the_host(tmp_path, monkeypatch):
    """On a GPU, here the device `meta`, the augmentation computes there, but workers, who draw, must not touch it."""
    begin, seen = preflight.begin, []

    def begin_on_meta(config):
        world, precision, found = begin(config)
        precision.device = torch.device("meta")
        return world, precision, found

    def stop(config, found, data, *others):
        seen.append(data)
        raise InputError("stopped")

    monkeypatch.setattr(preflight, "begin", begin_on_meta)
    monkeypatch.setattr(train_KD_parallel, "build_students", stop)
    images = str(make_images(tmp_path / "images"))
    words = ["--train-dir", images, "--val-dir", images, "--output-dir", str(tmp_path / "run"), "--loss-type", "ce"]
    with pytest.raises(InputError, match="stopped"):
        train_KD_parallel.main([*words, "--augment", "imagenet-hard", "--epochs", "1", "--device", "cpu"])
    assert seen[0].augment.mean.device.type == "meta"
    pickler = TensorDevices(io.BytesIO())
    pickler.dump(seen[0].source)
    assert pickler.devices == {"cpu"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dsa-strategy crop", "--dsa-strategy has no effect without --augment dsa"),
        ("--augment none --dsa-mode all", "--dsa-mode has no effect without --augment dsa"),
        ("--dsa-param contrast=1", "--dsa-param has no effect without --augment dsa"),
        ("--augment dsa --dsa-strategy crop_jump", "'jump' in 'crop_jump' is no operation of DSA"),
        ("--augment dsa --dsa-param angle=1", "'angle=1' is not NAME=VALUE"),
        ("--augment dsa --dsa-param contrast", "'' is not a number"),
        ("--augment dsa --dsa-param prob_flip=2", "at most 1"),
        ("--augment dsa --dsa-param ratio_scale=0.5", "at least 1"),
        ("--augment none --min-scale-crops 0.5", "--min-scale-crops 0.5 has no effect with --augment none"),
        ("--augment dsa --hflip 0.5", "--hflip 0.5 has no effect with --augment dsa"),
        ("--augment imagenet-hard --max-scale-crops 0.4", "--min-scale-crops 0.5 is more than --max-scale-crops 0.4"),
    ],
)
def test_wrong_flags(flags, said):
    """One sentence names the flag."""
    with pytest.raises(InputError) as error:
        parsed(flags)
    assert said in str(error.value)
