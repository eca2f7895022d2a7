"""Names of models that are neither torchvision's nor timm's: networks of dataset condensation, and functions in files.

Each network of dataset condensation has one name here, but several spellings in the code of the papers. `plain_name`
converts a spelling to the name, and shortens the path of a file:

    plain_name("ConvNetD3")  # convnet3
    plain_name("nets/mine.py:small")  # mine.small
"""

import re
from pathlib import Path

# A ConvNet's name: depth, width, norm, activation, pooling. The pattern also matches the spellings of DC and MTT
# (ConvNetD3, ConvNetW256, ConvNetBN, ConvNetAS, ConvNetNP), DD-Ranking (ConvNet-3-BN) and IDC (convnet-6).
CONVNET = re.compile(
    r"convnet(?:[-_]?d?(?P<depth>[1-9]\d?))?(?:[-_]?w(?P<width>[1-9]\d{0,4}))?"
    r"(?:[-_]?(?P<norm>in|bn|ln|gn|none|nn))?"
    r"(?:[-_]?(?P<activation>relu|leakyrelu|sigmoid|ar|al|as))?"
    r"(?:[-_]?(?P<pooling>avgpool|maxpool|nopool|ap|mp|np))?"
)
CONVNET_FORM = (
    "convnet[DEPTH][_wWIDTH][_in|_bn|_ln|_gn|_none][_relu|_leakyrelu|_sigmoid][_avgpool|_maxpool|_nopool], for "
    "instance convnet3 or convnet4_w256_bn"
)
WIDTH, NORM, ACTIVATION, POOLING = 128, "in", "relu", "avgpool"  # defaults for parts that a ConvNet's name omits
LONG = {
    "nn": "none",
    "ar": "relu",
    "al": "leakyrelu",
    "as": "sigmoid",
    "ap": "avgpool",
    "mp": "maxpool",
    "np": "nopool",
}
# names of the networks of dataset condensation other than ConvNets
NETWORKS = (
    "dc_mlp",
    "dc_lenet",
    "dc_alexnet",
    "dc_vgg11",
    "dc_vgg11_bn",
    "dc_resnet18",
    "dc_resnet18_bn",
    "dc_resnet18_ap",
    "dc_resnet18_bn_ap",
    "resnetap10",
    "resnet18_in",
)
# other spelling, as `squashed` returns it -> name of the network
SPELLINGS = {
    "mlp": "dc_mlp",
    "lenet": "dc_lenet",
    "resnet18bn": "dc_resnet18_bn",
    "resnet18ap": "dc_resnet18_ap",
    "resnet18bnap": "dc_resnet18_bn_ap",
    "resnet10ap": "resnetap10",
    "resnetap10in": "resnetap10",
    "convnetkip": "convnet_w1024_none",
}
# squashed spellings that may mean a network of torchvision or of DC: spelling -> (torchvision's name, DC's name)
AMBIGUOUS = {
    "alexnet": ("alexnet", "dc_alexnet"),
    "vgg11": ("vgg11", "dc_vgg11"),
    "vgg11bn": ("vgg11_bn", "dc_vgg11_bn"),
    "resnet18": ("resnet18", "dc_resnet18"),
}
EXAMPLES = ("convnet", "convnet3", "convnet3_bn", "convnet4", "convnet4_bn", "convnet5", "convnet6", *NETWORKS)


def squashed(name: str) -> str:
    """Return a model's name in lower case, without `-` and `_`."""
    return re.sub(r"[-_]", "", name.lower())


def network_name(name: str) -> str | None:
    """Convert any spelling of a network of dataset condensation to its name; return None for other models.

    A ConvNet's name omits default parts: `ConvNetD3` and `convnet3_w128_in` are both `convnet3`. RDED's `conv3` is
    `convnet3_bn`.
    """
    if name in NETWORKS:
        return name
    spelling = squashed(name)
    if spelling in SPELLINGS:
        return SPELLINGS[spelling]
    known = next((one for one in NETWORKS if squashed(one) == spelling), None)
    if known:
        return known
    if re.fullmatch(r"conv[3-6]", spelling):
        return f"convnet{spelling[-1]}_bn"
    found = CONVNET.fullmatch(name.lower())
    if found is None:
        return None
    parts = [f"convnet{found['depth'] or ''}"]
    if found["width"] and int(found["width"]) != WIDTH:
        parts.append(f"w{found['width']}")
    for part, usual in (("norm", NORM), ("activation", ACTIVATION), ("pooling", POOLING)):
        value = LONG.get(found[part], found[part])
        if value not in (None, usual):
            parts.append(value)
    return "_".join(parts)


def split_file_name(name: str) -> tuple[str, str] | None:
    """Split a model's name of the form `path/to/file.py:function` into path and function.

    Returns:
        (path, function), where the function is empty if the name is a path only; None for any other name.
    """
    found = re.fullmatch(r"(.+\.py)(?::(.*))?", name)
    return (found[1], found[2] or "") if found else None


def folder_name(name: str) -> str:
    """Return a model's name for use in a folder name: `file.function` for a function in a file, else `name`."""
    split = split_file_name(name)
    if split is None:
        return name
    return ".".join(re.sub(r"\W", "_", part) for part in (Path(split[0]).stem, split[1]) if part)


def plain_name(name: str) -> str:
    """Return the name of a model in stored settings.

    All spellings of a model have the same name, and so have copies of a model file in different folders. The name comes
    from `network_name` for a network of dataset condensation, else from `folder_name`.
    """
    return network_name(name) or folder_name(name)
