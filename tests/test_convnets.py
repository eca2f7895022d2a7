"""Networks of dataset condensation by name, and models from anybody's own file."""

import runpy
import shutil

import pytest
import timm
import torch
import torchvision
from helpers import DC_COLOUR, DC_LOSSES, ROOT, make_images, run, same_weights
from safetensors.torch import save_file
from small_network import FP32
from torch import nn
from torch.nn import functional as F

import train_FKD_parallel
import train_KD_parallel
from utils.config import KDConfig
from utils.system.errors import InputError
from utils.system.model_names import EXAMPLES, NETWORKS, folder_name, network_name, plain_name
from utils.training.convnets import BUILDERS, default_depth
from utils.training.memory_estimate import MemoryEstimate
from utils.training.models import build_model, build_student, build_teacher, pretrained_name, takes_channels
from utils.training.own_model import source_digest
from utils.training.precision import Precision
from utils.training.teachers import Ensemble
from utils.training.weights import load_weights

# first logits for an image of `torch.linspace`, initial weights of seed 0, by a transcription of the papers' code
ANSWERS = {
    "dc_mlp": [-0.04537, 0.02647, 0.06677],
    "dc_lenet": [0.01694, -0.01857, -0.00273],
    "dc_alexnet": [0.00294, 0.00661, 0.00883],
    "dc_vgg11": [-0.12629, -2.91386, -0.76219],
    "dc_vgg11_bn": [-0.01142, -0.01016, 0.01325],
    "dc_resnet18": [0.20198, -0.39044, -0.33102],
    "dc_resnet18_bn": [0.00389, -0.00343, 0.01514],
    "dc_resnet18_ap": [-0.84008, 0.50649, 0.04436],
    "dc_resnet18_bn_ap": [0.02432, -0.00992, 0.00868],
    "resnetap10": [0.71065, 0.19424, -0.46283],
    "resnet18_in": [0.2317, -0.33633, -0.2645],
}


def shape_of(name, side, channels=3, classes=10):
    """Build a model, and return the shape of its answer to two images."""
    model = build_model(name, classes, input_size=side, in_channels=channels).eval()
    with torch.no_grad():
        return tuple(model(torch.zeros(2, channels, side, side)).shape)


def parameters(name, side=32, channels=3, classes=10):
    """Return the number of trainable numbers of a model."""
    model = build_model(name, classes, input_size=side, in_channels=channels)
    return sum(tensor.numel() for tensor in model.parameters())


def test_the_losses_are_those_of_dc():
    """A plain loop on DC's tensors reproduces the losses of its own evaluator: same initial weights, same network."""
    images = torch.load(DC_COLOUR / "images_best.pt", weights_only=True)
    labels = torch.load(DC_COLOUR / "labels_best.pt", weights_only=True)
    model = build_student("convnet3", 10, seed=0, input_size=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(DC_LOSSES[:6], rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_initial_weights_are_those_of_the_papers_code(name):
    """The same seed gives the same answers, so that layers and the order in which they are made are the same."""
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    answer = build_student(name, 10, 0, input_size=32).eval()(image)
    assert answer[0, :3].tolist() == pytest.approx(ANSWERS[name], rel=1e-3, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "side", "channels", "count"),
    [
        ("convnet3", 32, 3, 320_010),
        ("convnet3_bn", 32, 3, 320_010),
        ("convnet3_none", 32, 3, 320_010 - 3 * 256),
        ("convnet3", 28, 1, 317_706),
        ("convnet4", 64, 3, 467_850),
        ("convnet3_nopool", 32, 3, 3_584 + 2 * 147_584 + 3 * 256 + 128 * 32 * 32 * 10 + 10),
        ("convnet3_ln", 28, 1, 1_280 + 2 * 147_584 + 256 * (32**2 + 16**2 + 8**2) + 128 * 16 * 10 + 10),
        ("dc_lenet", 32, 3, 62_006),  # PyTorch's tutorial on CIFAR-10 has this LeNet
        ("dc_lenet", 28, 1, 61_706),  # LeNet-5 on MNIST
        ("dc_mlp", 32, 3, 3_073 * 128 + 129 * 128 + 1_290),
        ("dc_vgg11", 32, 3, 9_231_114),  # VGG11 of pytorch-cifar
        ("dc_vgg11_bn", 32, 3, 9_231_114),
        ("dc_resnet18", 32, 3, 11_173_962),  # ResNet18 of pytorch-cifar
        ("dc_resnet18_bn", 32, 3, 11_173_962),
        ("dc_resnet18_ap", 32, 3, 11_173_962 + 512 * 15 * 10),
        ("resnet18_in", 224, 3, 11_689_512 - 990 * 513),  # torchvision's ResNet-18, with 10 classes
    ],
)
def test_numbers_of_parameters(name, side, channels, count):
    """Known numbers of parameters, or numbers by the formula of the layers."""
    assert parameters(name, side, channels) == count


def test_resnetap10_has_the_weights_of_a_resnet10():
    """Pooling has no weights, so that ResNetAP-10 has as many as torchvision's ResNet of one block per stage."""
    same = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    assert parameters("resnetap10", 224) == sum(tensor.numel() for tensor in same.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32, 64, 96, 128])
@pytest.mark.parametrize("name", ["convnet", "convnet3", "convnet3_w16_ln_maxpool", "dc_mlp", "resnetap10"])
def test_networks_for_images_of_any_size(name, side, channels):
    assert shape_of(name, side, channels) == (2, 10)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_for_small_images(name, side, channels):
    assert shape_of(name, side, channels) == (2, 10)


@pytest.mark.parametrize(("side", "depth"), [(28, 3), (32, 3), (64, 4), (128, 5), (224, 6), (8, 1), (2, 1)])
def test_default_depth(side, depth):
    """The depths of the field; `convnet` has them."""
    assert default_depth(side) == depth
    assert parameters("convnet", side) == parameters(f"convnet{depth}", side)


def test_blocks_of_a_convnet():
    """Convolution, norm, activation, pooling, in the order of the name; the first convolution pads 28 px to 32 px."""
    blocks = build_model("convnet2_w8_gn_leakyrelu_maxpool", 5, input_size=28).features
    conv, norm, activation, pooling = blocks[:4]
    assert (conv.padding, blocks[4].padding, conv.bias is not None) == ((3, 3), (1, 1), True)
    assert (norm.num_groups, activation.negative_slope, type(pooling)) == (4, 0.01, nn.MaxPool2d)
    assert build_model("convnet2", 5, input_size=32).features[0].padding == (1, 1)
    norms = {"in": nn.GroupNorm, "bn": nn.BatchNorm2d, "ln": nn.LayerNorm}
    for norm, kind in norms.items():
        assert isinstance(build_model(f"convnet1_{norm}", 5).features[1], kind)
    assert build_model("convnet1_in", 5).features[1].num_groups == 128
    assert isinstance(build_model("convnet1_none_sigmoid_nopool", 5).features[1], nn.Sigmoid)
    assert len(build_model("convnet1_none_sigmoid_nopool", 5).features) == 2


def test_resnetap_halves_by_pooling():
    """No convolution of ResNetAP-10 has a stride; its stem follows the size; ResNet-18's stem is torchvision's."""
    model = build_model("resnetap10", 10, input_size=224)
    assert {layer.stride for layer in model.modules() if isinstance(layer, nn.Conv2d)} == {(1, 1)}
    stems = [build_model("resnetap10", 10, input_size=side) for side in (224, 128, 64)]
    assert [stem.conv1.kernel_size[0] for stem in stems] == [7, 3, 3]
    assert [getattr(stem.pool, "kernel_size", 1) for stem in stems] == [4, 2, 1]
    model = build_model("resnet18_in", 10, input_size=224)
    assert (model.conv1.stride, model.pool.kernel_size, model.layer2[0].conv1.stride) == ((2, 2), 3, (2, 2))
    assert not [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_initial_weights_of_idcs_resnets():
    """Convolutions have the standard deviation sqrt(2 / (k² C_out)), which is not PyTorch's."""
    for layer in build_student("resnetap10", 10, 0, input_size=64).modules():
        if isinstance(layer, nn.Conv2d):
            expected = (2 / (layer.kernel_size[0] ** 2 * layer.out_channels)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ConvNetD3", "convnet3"),
        ("ConvNet-3", "convnet3"),
        ("ConvNet", "convnet"),
        ("ConvNet-3-BN", "convnet3_bn"),
        ("ConvNetD4-BN", "convnet4_bn"),
        ("ConvNetW256", "convnet_w256"),
        ("ConvNetBN", "convnet_bn"),
        ("ConvNetNN", "convnet_none"),
        ("ConvNetAS", "convnet_sigmoid"),
        ("ConvNetAL", "convnet_leakyrelu"),
        ("ConvNetAR", "convnet"),
        ("ConvNetNP", "convnet_nopool"),
        ("ConvNetAP", "convnet"),
        ("ConvNetKIP", "convnet_w1024_none"),
        ("convnet3_w128_in", "convnet3"),
        ("convnet3_w64_in_relu_avgpool", "convnet3_w64"),
        ("convnet-6", "convnet6"),
        ("conv4", "convnet4_bn"),
        ("MLP", "dc_mlp"),
        ("LeNet", "dc_lenet"),
        ("DC_AlexNet", "dc_alexnet"),
        ("ResNet18_AP", "dc_resnet18_ap"),
        ("ResNet18BN_AP", "dc_resnet18_bn_ap"),
        ("ResNet-18-BN", "dc_resnet18_bn"),
        ("ResNetAP-10", "resnetap10"),
        ("resnet10_ap", "resnetap10"),
        ("ResNet18-IN", "resnet18_in"),
    ],
)
def test_spellings_of_the_papers_code(spelling, name):
    """Each spelling gives the network; the name is its own spelling; settings of a run hold the name."""
    assert network_name(spelling) == name
    assert network_name(name) == name
    side = 64 if name == "convnet6" else 32
    one, other = (build_student(each, 4, 1, input_size=side).state_dict() for each in (spelling, name))
    assert same_weights(one, other)
    assert takes_channels(spelling)
    assert KDConfig(models=(spelling,)).settings()["model"] == name


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "ConvNeXt_tiny", "convnext_tiny", "mlp_mixer", "convnet0"])
def test_other_names_are_left_to_the_libraries(name):
    assert network_name(name) is None
    assert plain_name(name) == folder_name(name) == name
    assert not takes_channels(name)


def test_no_model_of_a_library_is_hidden():
    """No name of torchvision or timm is a spelling of a network here."""
    libraries = [*torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    assert len(libraries) > 500
    assert [name for name in libraries if network_name(name)] == []
    assert set(BUILDERS) == set(NETWORKS)
    assert all(network_name(name) == name for name in EXAMPLES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AlexNet", "give --model alexnet for torchvision's, or --model dc_alexnet"),
        ("ResNet-18", "give --model resnet18 for torchvision's, or --model dc_resnet18"),
        ("VGG11BN", "give --model vgg11_bn for torchvision's, or --model dc_vgg11_bn"),
        ("convnet3_wide", r"the form is convnet\[DEPTH\]"),
        ("ConvNetD3-XN", r"the form is convnet\[DEPTH\]"),
        ("cnvnet3", "did you mean convnet3"),
        ("resnet_ap_11", "did you mean resnetap10"),
        ("lenet5", "did you mean dc_lenet"),
    ],
)
def test_an_unknown_name_points_to_the_networks_first(name, words):
    with pytest.raises(InputError, match=f"^--model {name} .*{words}"):
        build_model(name, 10)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("convnet6", 32, "at least 64 px, not --input-size 32; choose a depth of at most 5"),
        ("convnet6", 28, "at least 64 px, not --input-size 28; choose a depth of at most 5"),
        ("convnet3_w6_gn", 32, "choose a width that is a multiple of 4"),
        ("dc_vgg11", 64, "takes images of 28 or 32 px, not --input-size 64"),
    ],
)
def test_sizes_that_a_network_cannot_have(name, side, words):
    """One sentence that names the flags."""
    with pytest.raises(InputError, match=f"^--model {name} .*{words}") as caught:
        build_model(name, 10, input_size=side)
    assert ". " not in str(caught.value)


def test_the_deepest_network_of_a_size():
    """The message about depth is right: one block less works."""
    assert shape_of("convnet5", 32) == shape_of("convnet5", 28) == shape_of("convnet6_w4_nopool", 28) == (2, 10)


def test_other_models_take_three_channels():
    """Grey images are refused in one sentence; an unknown name is still called unknown."""
    for name in ("resnet18", "resnet10t"):
        with pytest.raises(InputError, match=rf"^--arch {name} takes images of 3 channels, not 1; .*convnet$"):
            build_model(name, 10, flag="--arch", in_channels=1)
    with pytest.raises(InputError, match="did you mean"):
        build_model("resnet19", 10, in_channels=1)


@pytest.mark.parametrize("name", ["convnet3", "dc_lenet", "resnetap10", "dc_resnet18"])
def test_a_small_stem_is_refused(name):
    with pytest.raises(InputError, match=rf"--stem small needs a ResNet with conv1 and maxpool, and {name} has none"):
        build_model(name, 10, "small")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["convnet3", "dc_vgg11", "resnetap10", "dc_resnet18_bn_ap"])
def test_memory_layout_and_arithmetic(name, precision):
    """channels-last gives the answers of NCHW up to rounding, bf16 nearly those of fp32."""
    model = build_student(name, 10, 0, input_size=32, in_channels=1).eval()
    images = torch.randn(4, 1, 32, 32)
    expected = model(images)
    tolerance = {"fp32": 1e-4, "bf16": 0.06}[precision]
    precision = Precision(precision, torch.device("cpu"))
    layout = images.to(memory_format=torch.channels_last)
    answers = precision.outputs(precision.place(model).to(memory_format=torch.channels_last), layout)
    assert torch.allclose(answers, expected, atol=tolerance * expected.abs().max().item())


def test_memory_estimate_of_grey_images():
    """The estimate passes grey images; the largest output is the first convolution's."""
    model = build_student("convnet3", 10, 0, input_size=32, in_channels=1)
    estimate = MemoryEstimate(model, 32, FP32, in_channels=1)
    assert estimate.output_bytes == 128 * 32 * 32 * 4
    assert estimate.view_bytes(5) == 4 * 5 * 4 * 32 * 32
    assert estimate.bytes_per_row > estimate.output_bytes


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [("convnet3", 28, 1), ("convnet4_bn", 64, 3), ("dc_lenet", 28, 1), ("dc_mlp", 32, 3), ("resnet18_in", 32, 1)],
)
def test_a_teacher_from_a_file(name, side, channels, tmp_path):
    """The file gives classes and channels."""
    state = build_student(name, 7, 0, input_size=side, in_channels=channels).state_dict()
    torch.save({"model": state}, tmp_path / "teacher.pth")
    teacher = build_teacher(name, tmp_path / "teacher.pth", input_size=side)
    assert same_weights(teacher.state_dict(), state)
    assert teacher(torch.zeros(1, channels, side, side)).shape == (1, 7)


def test_teachers_of_grey_images(tmp_path):
    """An ensemble tests and asks its teachers with one channel; the stored name is the network's."""
    torch.save(build_student("convnet3", 7, 0, input_size=28, in_channels=1).state_dict(), tmp_path / "grey.pth")
    torch.save(build_student("convnet3", 7, 0, input_size=28).state_dict(), tmp_path / "rgb.pth")
    grey = Ensemble(["ConvNetD3"], [tmp_path / "grey.pth"], "mean", FP32, input_size=28, in_channels=1)
    assert grey.num_classes(28) == 7
    assert grey.described[0]["arch"] == "convnet3"
    with pytest.raises(InputError, match=r"^--arch convnet3 cannot answer at --input-size 28 .*3 channels"):
        Ensemble(["convnet3"], [tmp_path / "rgb.pth"], "mean", FP32, input_size=28, in_channels=1)


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_convnet_weights_of_rded_and_idc(norm, tmp_path):
    """Their names, convolutions and norms in lists of their own, are translated."""
    state = build_student(f"convnet3_{norm}", 7, 0).state_dict()
    layers = 3 if norm == "none" else 4
    other = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        index, _, weight = rest.partition(".")
        if part == "features":
            block, place = divmod(int(index), layers)
            name = f"layers.{('conv', 'norm')[place]}.{block}.{weight}"
        other[name] = value
    assert "layers.conv.2.weight" in other
    torch.save({"model": other}, tmp_path / "conv3.pth")
    assert same_weights(load_weights(tmp_path / "conv3.pth"), state)


def test_weights_that_do_not_fit_a_convnet(tmp_path, monkeypatch):
    """The error names the network or the size that fits."""
    monkeypatch.setattr("utils.training.models.SEARCH_SECONDS", 60)
    torch.save(build_student("convnet4_bn", 7, 0, input_size=64).state_dict(), tmp_path / "f.pth")
    with pytest.raises(InputError, match=r"they fit --arch convnet4_bn$"):
        build_teacher("convnet4", tmp_path / "f.pth", input_size=64)
    with pytest.raises(InputError, match=r"they fit --input-size 64$"):
        build_teacher("convnet4_bn", tmp_path / "f.pth", input_size=32)


@pytest.mark.parametrize("name", ["convnet3", "resnetap10"])
def test_networks_have_no_pretrained_weights(name):
    with pytest.raises(InputError, match=f"^--arch {name} has no pretrained weights; give a file with its weights"):
        pretrained_name(name)
    with pytest.raises(InputError, match=f"{name} has no pretrained weights"):
        build_teacher(name)


OWN = '''
"""Models of somebody."""
from collections import OrderedDict

import torch
from torch import nn

torch.rand(3)  # random numbers of the import do not count
OTHER = 5


def depthwise(num_classes, in_channels=3):
    stem, body = nn.Conv2d(in_channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return nn.Sequential(OrderedDict(stem=stem, body=body, head=head))


def grouped(num_classes, in_channels=3):
    first = nn.Conv2d(in_channels, 6, 3, padding=1, groups=in_channels)
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))


def plain(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def small(num_classes, in_channels, input_size=32):
    linear = nn.Linear(4 * input_size**2, num_classes)
    model = nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.Flatten(), linear)
    model.seen = num_classes, in_channels, input_size
    return model


def anything(**options):
    return small(**options)


class Net(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(3, num_classes)


def needs_more(num_classes, width):
    return nn.Linear(width, num_classes)


def no_classes(classes):
    return nn.Linear(3, classes)


def raises(num_classes):
    raise KeyError("no such layer")


def number(num_classes):
    return 5


def wrong(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes + 1))
'''


@pytest.fixture
def own(tmp_path):
    """Write a file with models; return its path."""
    path = tmp_path / "my nets" / "net-a.py"
    path.parent.mkdir()
    path.write_text(OWN)
    return path


def test_own_models(own):
    """A function gets what it takes; a class works as well; one that takes in_channels may see grey images."""
    assert build_model(f"{own}:small", 7, input_size=28, in_channels=1).seen == (7, 1, 28)
    assert build_model(f"{own}:small", 7).seen == (7, 3, 32)
    assert build_model(f"{own}:anything", 7, input_size=16).seen == (7, 3, 16)
    assert build_model(f"{own}:Net", 7).out_features == 7
    assert takes_channels(f"{own}:small")
    assert takes_channels(f"{own}:anything")
    assert not takes_channels(f"{own}:Net")
    assert not takes_channels(f"{own}:missing")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", ["depthwise", "grouped", "dc_mlp"])
def test_teachers_whose_weights_hardly_tell_their_channels(model, channels, own, tmp_path):
    """Weights of depthwise convolutions are [D, 1, H, W], and .safetensors files put `body` before `stem`."""
    name = model if model == "dc_mlp" else f"{own}:{model}"
    state = build_student(name, 7, 0, input_size=28, in_channels=channels).state_dict()
    torch.save(state, tmp_path / "teacher.pth")
    save_file(state, tmp_path / "teacher.safetensors")
    for file in ("teacher.pth", "teacher.safetensors"):
        teacher = Ensemble([name], [tmp_path / file], "mean", FP32, input_size=28, in_channels=channels)
        assert same_weights(teacher.teachers[0].state_dict(), state)
        assert teacher.num_classes(28) == 7


def test_an_own_model_begins_with_the_weights_of_its_seed(own):
    """The first use of a file, which imports it, draws the same weights as the second."""
    first, second = (build_student(f"{own}:small", 3, 5).state_dict() for _ in range(2))
    assert same_weights(first, second)
    assert not same_weights(first, build_student(f"{own}:small", 3, 6).state_dict())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("missing", "has no function called missing; name a function that returns the model"),
        ("OTHER", "has something else called OTHER"),
        ("", "names no function; give --arch .*net-a.py:FUNCTION"),
        ("no_classes", "does not take num_classes; give it an argument of this name"),
        ("needs_more", r"cannot be called with num_classes alone \(missing a required argument: 'width'\)"),
        ("raises", "failed: KeyError: 'no such layer'; mend the function"),
        ("number", r"returned int, not a torch.nn.Module; return the model"),
    ],
)
def test_own_models_that_cannot_be_built(own, function, words):
    """One sentence that names flag, file and remedy."""
    with pytest.raises(InputError, match=words) as caught:
        build_model(f"{own}:{function}", 3, flag="--arch")
    sentence = str(caught.value)
    assert sentence.startswith(f"--arch {own}")
    assert ". " not in sentence


def test_own_files_that_cannot_be_used(tmp_path):
    """Missing files and files with errors."""
    with pytest.raises(InputError, match=r"^--model none\.py:f: there is no file none\.py; check its path$"):
        build_model("none.py:f", 3)
    (tmp_path / "a.py").write_text("import no_such_module_here")
    with pytest.raises(InputError, match=r"ModuleNotFoundError.*add the folders .* to PYTHONPATH"):
        build_model(f"{tmp_path / 'a.py'}:f", 3)
    (tmp_path / "b.py").write_text("def f(:")
    with pytest.raises(InputError, match=r"b\.py cannot be imported \(SyntaxError"):
        build_model(f"{tmp_path / 'b.py'}:f", 3)


def test_grey_images_and_an_own_model_without_channels(own):
    with pytest.raises(InputError, match="Net does not take in_channels, and the images have 1 channel"):
        build_model(f"{own}:Net", 3, in_channels=1)


def test_names_of_own_models(own):
    """Folders and settings have `file.function`, without the path; scripts/runs.py uses the same name."""
    name = f"{own}:small"
    config = KDConfig.parse(["--train-dir", "a", "--val-dir", "b", "--loss-type", "ce", "--model", name, "ConvNetD3"])
    assert config.output_dir.startswith(f"./save/{config.prefix}net_a.small+ConvNetD3-")
    assert config.output_dir.count("/") == 2
    students = config.students()
    assert [student.student_name for student in students] == ["net_a.small-seed0", "ConvNetD3-seed0"]
    assert [student.settings()["model"] for student in students] == ["net_a.small", "convnet3"]
    assert students[0].model == name
    model_folder = runpy.run_path(str(ROOT / "scripts" / "runs.py"))["model_folder"]
    for model in (name, "a.py:b", "resnet18", "ConvNet-3"):
        assert model_folder(model) == folder_name(model)


@pytest.mark.parametrize("models", [("x/net.py:f", "y/net.py:f"), ("convnet3", "ConvNetD3")])
def test_two_models_of_one_name(models):
    """Two students would be told apart by nothing."""
    with pytest.raises(InputError, match=f"--model {models[0]} and {models[1]} are both called"):
        KDConfig.parse(["--train-dir", "a", "--val-dir", "b", "--loss-type", "ce", "--model", *models])


def trained(tmp_path, own, *flags, model="small"):
    """Train a model of the file for an epoch on three classes of noise."""
    for name in ("train", "val"):
        if not (tmp_path / name).exists():
            make_images(tmp_path / name)
    words = ["--train-dir", tmp_path / "train", "--val-dir", tmp_path / "val", "--model", f"{own}:{model}"]
    words += ["--loss-type", "ce", "--input-size", 32, "--batch-size", 4, "--device", "cpu", "-j", 0]
    return run(train_KD_parallel, *words, "--output-dir", tmp_path / "out", *flags)


def test_training_and_resuming_an_own_model(tmp_path, own):
    """A run trains it and resumes with the file at another place, but not with a changed file."""
    done = trained(tmp_path, own, "--epochs", 1)
    assert done.code == 0, done.err
    assert (
        f"model   {own}:small, digest {source_digest(f'{own}:small')}" in (tmp_path / "out" / "train.log").read_text()
    )
    moved = tmp_path / "net-a.py"
    shutil.copy(own, moved)
    assert source_digest(f"{moved}:small") == source_digest(f"{own}:small")
    moved.write_text(OWN + "\n\n# changed\n")
    refused = trained(tmp_path, moved, "--epochs", 1, "--resume")
    assert refused.code == 2
    assert "digest of the model's file was" in refused.err
    assert "Traceback" not in refused.err
    shutil.copy(own, moved)
    resumed = trained(tmp_path, moved, "--epochs", 1, "--resume")
    assert resumed.code == 0, resumed.err


def test_an_own_model_with_a_wrong_number_of_outputs(tmp_path, own):
    """The run is refused before it begins."""
    refused = trained(tmp_path, own, "--epochs", 1, model="wrong")
    assert refused.code == 2
    assert "answers with [4, 4], not with logits [4, 3]" in refused.err


def test_an_unknown_model_ends_a_run_in_one_sentence(tmp_path):
    """The command line shows it without traceback."""
    make_images(tmp_path / "i")
    done = run(
        train_FKD_parallel,
        *("--train-dir", tmp_path / "i", "--val-dir", tmp_path / "i", "--fkd-path", tmp_path, "--model", "no.py:f"),
        *("--output-dir", tmp_path / "out"),
    )
    assert done.code == 2
    assert "Traceback" not in done.err
