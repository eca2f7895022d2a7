"""Load weights from the checkpoint files of common training scripts."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.system.errors import InputError, clause, listing
from utils.system.files import utf8_path
from utils.system.log import log
from utils.system.safe_load import CHECKPOINT_GLOBALS, load_archive

# Keys under which training scripts save the weights, in the order of preference. A file may also contain an EMA of the
# weights, under AVERAGED_KEYS. The EMA differs from the model in accuracy, so it is loaded only if the file has no
# other weights.
KEYS = "state_dict", "model_state_dict", "model", "net", "student"
AVERAGED_KEYS = "state_dict_ema", "model_ema"
# Prefixes of weight names. DataParallel and AveragedModel add `module.`, Lightning adds `model.`, and code for
# self-supervised learning adds `backbone.`.
PREFIXES = (
    "module.",
    "model.",
    "backbone.",
)
COMPILED = "_orig_mod."  # torch.compile inserts this text into the weight names of a compiled module
# buffers that are not weights: the library thop adds the first two to every layer, AveragedModel adds the third
COUNTERS = {
    "total_ops",
    "total_params",
    "n_averaged",
}

# torchvision's DenseNet files use old names: denselayer1.norm.1.weight is now denselayer1.norm1.weight
OLD_DENSENET = re.compile(r"(?<=\.)(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")

# ConvNets of IDC and RDED number convolutions and norms separately: layers.conv.1.weight, layers.norm.1.bias
CONVNET_LAYER = re.compile(r"layers\.(conv|norm)\.(\d+)\.")

State = Mapping[str, torch.Tensor]


def load_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the state dict of a checkpoint file (`.safetensors` or `torch.save`), without running code from the file.

    The state dict may be the whole file, or nested under one of KEYS or AVERAGED_KEYS. Other content of the file, such
    as optimizer state and settings, is ignored. COUNTERS and common PREFIXES are removed, see `plain_names`.

    Raises:
        InputError: the file is missing or damaged, is a whole pickled model, or holds no state dict.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; give a checkpoint file with the model's weights")
    if str(path).endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            with utf8_path(path) as name:
                return plain_names(load_file(name))
        except (SafetensorError, AttributeError) as error:  # AttributeError: this PyTorch lacks a dtype of the file
            raise InputError(f"{path} is not a readable safetensors file ({clause(error)}); copy it again") from None
    remedy = "where its code is, save torch.save(model.state_dict(), path) alone"
    state = unwrapped(load_archive(path, CHECKPOINT_GLOBALS, remedy), path)
    if not is_state(state):
        raise InputError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), path)")
    return plain_names(state)


def is_state(value: Any) -> bool:
    """Return whether a value is a non-empty dict from strings to tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
    )


def unwrapped(value: Any, path: Path | str) -> Any:
    """Return the state dict that is nested in `value`, the content of a checkpoint file.

    If there are several, the first one in the order of KEYS and AVERAGED_KEYS is returned. If there is none, `value`
    itself is returned. The log mentions the choice if there were several, or if an EMA was chosen.
    """
    if is_state(value) or not isinstance(value, dict):
        return value
    nested = {key: unwrapped(value[key], path) for key in (*KEYS, *AVERAGED_KEYS) if key in value}
    found = [key for key, inner in nested.items() if is_state(inner)]
    if not found:
        return value
    taken, *others = found
    if others or taken in AVERAGED_KEYS:
        averaged = " (an EMA of the weights)" if taken in AVERAGED_KEYS else ""
        instead_of = f", not {listing(others)}" if others else ""
        log.info("weights %s: loads %s%s%s", path, taken, averaged, instead_of)
    return nested[taken]


def plain_names(state: State) -> dict[str, torch.Tensor]:
    """Return a state dict with the names that the plain torchvision or timm model uses.

    Entries named in COUNTERS and the prefix of torch.compile are removed. Prefixes from PREFIXES that all names share
    are removed repeatedly. Old DenseNet names are updated, and weights of ConvNets get the names that DC uses.
    """
    plain = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in COUNTERS}
    renamed = {name.replace(COMPILED, ""): tensor for name, tensor in plain.items()}
    plain = renamed if len(renamed) == len(plain) else plain
    while prefix := next((p for p in PREFIXES if plain and all(name.startswith(p) for name in plain)), None):
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    # number of layers of a block: convolution, norm (in some models), activation, pooling
    layers = 4 if any(name.startswith("layers.norm.") for name in plain) else 3

    def in_sequence(found: re.Match) -> str:
        return f"features.{layers * int(found[2]) + (found[1] == 'norm')}."

    plain = {CONVNET_LAYER.sub(in_sequence, name, count=1): tensor for name, tensor in plain.items()}
    return {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in plain.items()}


def channels_of(state: State) -> int | None:
    """Return the number of input channels of a saved model, 1 or 3, given its state dict; None without convolutions.

    Return 1 if a weight of a convolution has one input channel and none has three. The smallest number is no proof,
    because the weight of a depthwise convolution also has one input channel. The first weight is no proof either,
    because .safetensors files are sorted by name.
    """
    inputs = {tensor.shape[1] for tensor in state.values() if tensor.dim() == 4}
    if not inputs:
        return None
    return 1 if 1 in inputs and 3 not in inputs else 3


def classes_of(state: State) -> int | None:
    """Return the number of classes of a saved model, given the model's state dict.

    The last two-dimensional weight has one row per class. If no weight has two dimensions, return None.
    """
    rows = [tensor.shape[0] for name, tensor in state.items() if name.endswith("weight") and tensor.dim() == 2]
    return rows[-1] if rows else None
