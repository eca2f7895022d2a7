"""Build the students that papers on dataset condensation train: ConvNets, MLP, LeNet, AlexNet, VGG11 and ResNets.

Sources of the architectures (facts, no code): VICO-UoE/DatasetCondensation networks.py (DC, DSA, DM),
GeorgeCazenavette/mtt-distillation networks.py (MTT), snu-mllab/Efficient-Dataset-Condensation models/ (IDC) and
vimar-gu/MinimaxDiffusion train_models/.

Layers are created in the order of the original code, so that the same `torch.manual_seed` gives the same initial
weights. The names of the weights are DC's.

Shapes: images [B, C, S, S], logits [B, number of classes].
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from utils.system.errors import InputError
from utils.system.model_names import ACTIVATION, CONVNET, NORM, POOLING, WIDTH

SMALL_SIZE = 32  # default side of the images in pixels; LARGE_SIZE is the default for IDC's ResNets
LARGE_SIZE = 224
# Images of this side are padded with zeros to 32 px by the first convolution, as DC does with MNIST and FashionMNIST.
PADDED_SIZE = 28
# number of output channels of each convolution; M: max-pooling
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


def build_network(
    name: str, num_classes: int, in_channels: int = 3, input_size: int | None = None, flag: str = "--model"
) -> nn.Module:
    """Return a network of dataset condensation; the global random generator draws the initial weights.

    Args:
        name: name of the network, as `network_name` returns it.
        num_classes: number of outputs.
        in_channels: C, number of channels of the images.
        input_size: S, side of the images in pixels; None: 32, or 224 for the ResNets of IDC.
        flag: the command-line flag that set `name`; error messages mention it.

    Raises:
        InputError: the network cannot be built for images of this size, or with the width in its name.
    """
    if name in BUILDERS:
        make, usual, sizes = BUILDERS[name]
        side = input_size or usual
        if sizes and side not in sizes:
            raise InputError(
                f"{flag} {name} takes images of {' or '.join(map(str, sizes))} px, not --input-size {side}; choose one "
                "of these sizes, or another model, for instance convnet"
            )
        return make(num_classes, in_channels, side)
    found = CONVNET.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no network of this module")
    side = input_size or SMALL_SIZE
    width, norm, pooling = int(found["width"] or WIDTH), found["norm"] or NORM, found["pooling"] or POOLING
    depth = int(found["depth"] or default_depth(side))
    deepest = (SMALL_SIZE if side == PADDED_SIZE else side).bit_length() - 1
    if pooling != "nopool" and depth > deepest:
        raise InputError(
            f"{flag} {name} halves its images {depth} times, so that they need at least {2**depth} px, not "
            f"--input-size {side}; choose a depth of at most {max(deepest, 1)}, or larger images"
        )
    if norm == "gn" and width % 4:
        raise InputError(f"{flag} {name} normalises 4 groups of channels; choose a width that is a multiple of 4")
    return convnet(num_classes, in_channels, side, depth, width, norm, found["activation"] or ACTIVATION, pooling)


def default_depth(side: int) -> int:
    """Return the number of ConvNet blocks that reduce the side of images to about 4 pixels: 3 for 32, 6 for 224."""
    return max(round(math.log2(side / 4)), 1)


def convnet(
    num_classes: int,
    in_channels: int,
    side: int,
    depth: int,
    width: int = WIDTH,
    norm: str = NORM,
    activation: str = ACTIVATION,
    pooling: str = POOLING,
) -> nn.Module:
    """Return a ConvNet: blocks of convolution 3x3, norm, activation and pooling 2x2, then a linear layer.

    Args:
        num_classes: number of outputs.
        in_channels: C, number of channels of the images.
        side: S, side of the images in pixels.
        depth: number of blocks.
        width: number of channels of each block.
        norm: `in` (instance), `bn` (batch), `ln` (layer), `gn` (4 groups) or `none`.
        activation: `relu`, `leakyrelu` or `sigmoid`.
        pooling: `avgpool`, `maxpool` or `nopool`.
    """
    layers: list[nn.Module] = []
    padding = 1
    if side == PADDED_SIZE:
        side, padding = SMALL_SIZE, 3
    for block in range(depth):
        layers.append(nn.Conv2d(width if block else in_channels, width, 3, padding=1 if block else padding))
        if norm != "none":
            layers.append(norm_layer(norm, width, side))
        layers.append(ACTIVATIONS[activation]())
        if pooling != "nopool":
            layers.append(nn.AvgPool2d(2) if pooling == "avgpool" else nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=nn.Linear(width * side**2, num_classes)
        )
    )


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leakyrelu": partial(nn.LeakyReLU, 0.01),
    "sigmoid": nn.Sigmoid,
}


def norm_layer(norm: str, channels: int, side: int = 0) -> nn.Module:
    """Return a normalisation layer with learnt scale and shift, for activations [B, channels, side, side].

    `norm` is `in`, `bn`, `ln` or `gn`, see `convnet`. Instance norm is built as group norm with one channel per group,
    as in DC's code, and therefore has no running statistics.
    """
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    if norm == "ln":
        return nn.LayerNorm([channels, side, side])
    return nn.GroupNorm(channels if norm == "in" else 4, channels)


def mlp(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Return DC's MLP: two hidden layers of 128 units."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc_1=nn.Linear(in_channels * side**2, 128),
            relu_1=nn.ReLU(inplace=True),
            fc_2=nn.Linear(128, 128),
            relu_2=nn.ReLU(inplace=True),
            fc_3=nn.Linear(128, num_classes),
        )
    )


def lenet(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Return DC's LeNet for images of 28 or 32 px; the first convolution pads images of 28 px to 32 px."""
    features = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2 if side == PADDED_SIZE else 0),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
    return nn.Sequential(
        OrderedDict(
            features=features,
            flatten=nn.Flatten(),
            fc_1=nn.Linear(16 * 5 * 5, 120),
            relu_1=nn.ReLU(inplace=True),
            fc_2=nn.Linear(120, 84),
            relu_2=nn.ReLU(inplace=True),
            fc_3=nn.Linear(84, num_classes),
        )
    )


def alexnet(num_classes: int, in_channels: int, side: int) -> nn.Module:
    """Return DC's AlexNet for images of 28 or 32 px: five convolutions without norm, one linear layer."""
    features = nn.Sequential(
        nn.Conv2d(in_channels, 128, 5, padding=4 if side == PADDED_SIZE else 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(128, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 192, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(192, 192, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), fc=nn.Linear(192 * 4 * 4, num_classes)))


def vgg11(num_classes: int, in_channels: int, side: int, norm: str = "in") -> nn.Module:
    """Return DC's VGG11 for images of 28 or 32 px: eight convolutions with norm, one linear layer."""
    layers: list[nn.Module] = []
    channels, padding = in_channels, 3 if side == PADDED_SIZE else 1
    for width in VGG11:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=padding), norm_layer(norm, width), nn.ReLU(inplace=True)]
        channels, padding = width, 1
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=nn.Linear(channels, num_classes))
    )


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions without bias.

    Args:
        channels: number of channels of the input.
        width: number of channels of the output.
        stride: 1, or 2 to halve the sides of the images.
        norm: `in` or `bn`, see `norm_layer`.
        pooled: whether average pooling halves the sides, instead of convolutions with stride 2.
    """

    def __init__(self, channels: int, width: int, stride: int, norm: str, pooled: bool) -> None:
        super().__init__()
        step = 1 if pooled else stride
        pooled = pooled and stride == 2
        self.conv1 = nn.Conv2d(channels, width, 3, stride=step, padding=1, bias=False)
        self.bn1 = norm_layer(norm, width)
        self.pool = nn.AvgPool2d(2) if pooled else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm_layer(norm, width)
        self.shortcut = nn.Sequential()
        if stride == 2 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride=step, bias=False)
            pooling = [nn.AvgPool2d(2)] if pooled else []
            self.shortcut = nn.Sequential(projection, *pooling, norm_layer(norm, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output [B, width, H / stride, W / stride] for x [B, channels, H, W]."""
        out = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


def stages(blocks: int, norm: str, pooled: bool) -> dict[str, nn.Module]:
    """Return the four stages of a ResNet, with `blocks` blocks each and 64, 128, 256 and 512 channels."""
    made: dict[str, nn.Module] = {}
    channels = 64
    for stage in range(4):
        width, stride = 64 * 2**stage, 2 if stage else 1
        first = BasicBlock(channels, width, stride, norm, pooled)
        others = [BasicBlock(width, width, 1, norm, pooled) for _ in range(blocks - 1)]
        made[f"layer{stage + 1}"] = nn.Sequential(first, *others)
        channels = width
    return made


def dc_resnet18(num_classes: int, in_channels: int, side: int, norm: str = "in", pooled: bool = False) -> nn.Module:
    """Return DC's ResNet-18 for images of 28 or 32 px, whose stem is a 3x3 convolution.

    With `pooled`, average pooling replaces strides (`ResNet18_AP`), and the linear layer gets the features of all
    positions of the last stage (3x3 or 4x4). Without `pooled`, it gets their mean.
    """
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), bn1=norm_layer(norm, 64), relu=nn.ReLU(inplace=True)
    )
    layers.update(stages(2, norm, pooled))
    last = side // 8 if pooled else 1
    layers["pool"] = nn.Identity() if pooled else nn.AvgPool2d(4)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(512 * last**2, num_classes)
    return nn.Sequential(layers)


def idc_resnet(num_classes: int, in_channels: int, side: int, blocks: int, pooled: bool) -> nn.Module:
    """Return a ResNet of IDC and Minimax Diffusion with instance norm, for images of any size.

    The stem depends on the size. Above 128 px, it has a 7x7 convolution and divides the side by 4. Above 64 px, it has
    a 3x3 convolution and divides the side by 2. Up to 64 px, it is a 3x3 convolution alone. Weights of convolutions are
    drawn from N(0, 2 / (k² C_out)).

    Args:
        num_classes: number of outputs.
        in_channels: C, number of channels of the images.
        side: S, side of the images in pixels.
        blocks: number of blocks of each stage: 1 for a ResNet-10, 2 for a ResNet-18.
        pooled: whether average pooling replaces strides and max-pooling (ResNetAP).
    """
    pool: nn.Module
    if side > 128:
        stem = nn.Conv2d(in_channels, 64, 7, stride=1 if pooled else 2, padding=3, bias=False)
        pool = nn.AvgPool2d(4) if pooled else nn.MaxPool2d(3, stride=2, padding=1)
    else:
        stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        pool = nn.Identity()
        if side > 64:
            pool = nn.AvgPool2d(2) if pooled else nn.MaxPool2d(3, stride=2, padding=1)
    layers = OrderedDict[str, nn.Module](conv1=stem, bn1=norm_layer("in", 64), relu=nn.ReLU(inplace=True), pool=pool)
    layers.update(stages(blocks, "in", pooled))
    layers.update(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=nn.Linear(512, num_classes))
    network = nn.Sequential(layers)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)))
    return network


DC_SIZES = (PADDED_SIZE, SMALL_SIZE)
# name -> (function that builds the network, default side of the images, allowed sides; an empty tuple allows all)
BUILDERS: dict[str, tuple[Callable[[int, int, int], nn.Module], int, tuple[int, ...]]] = {
    "dc_mlp": (mlp, SMALL_SIZE, ()),
    "dc_lenet": (lenet, SMALL_SIZE, DC_SIZES),
    "dc_alexnet": (alexnet, SMALL_SIZE, DC_SIZES),
    "dc_vgg11": (vgg11, SMALL_SIZE, DC_SIZES),
    "dc_vgg11_bn": (partial(vgg11, norm="bn"), SMALL_SIZE, DC_SIZES),
    "dc_resnet18": (dc_resnet18, SMALL_SIZE, DC_SIZES),
    "dc_resnet18_bn": (partial(dc_resnet18, norm="bn"), SMALL_SIZE, DC_SIZES),
    "dc_resnet18_ap": (partial(dc_resnet18, pooled=True), SMALL_SIZE, DC_SIZES),
    "dc_resnet18_bn_ap": (partial(dc_resnet18, norm="bn", pooled=True), SMALL_SIZE, DC_SIZES),
    "resnetap10": (partial(idc_resnet, blocks=1, pooled=True), LARGE_SIZE, ()),
    "resnet18_in": (partial(idc_resnet, blocks=2, pooled=False), LARGE_SIZE, ()),
}
