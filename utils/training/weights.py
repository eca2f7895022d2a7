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

# Keys under which training scripts save the weights, in the order of preference. An EMA of the weights is another model
# with another accuracy, so it is only taken if there is nothing else.
KEYS = "state_dict", "model_state_dict", "model", "net", "student"
AVERAGED_KEYS = "state_dict_ema", "model_ema"
PREFIXES = (
    "module.",
    "model.",
    "backbone.",
)  # from DataParallel and AveragedModel, from Lightning, from self-supervised code
COMPILED = "_orig_mod."  # prefix that torch.compile adds to the names in the compiled module
COUNTERS = {
    "total_ops",
    "total_params",
    "n_averaged",
}  # buffers of thop (in every layer) and of AveragedModel that are not weights

# torchvision's DenseNet files use old names: denselayer1.norm.1.weight is now denselayer1.norm1.weight
OLD_DENSENET = re.compile(r"(?<=\.)(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")

State = Mapping[str, torch.Tensor]


def load_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint file, without running its pickle.

    Both `.safetensors` and `torch.save` files are read. The state dict may be nested under one of KEYS, or else of
    AVERAGED_KEYS. COUNTERS are removed, and repeatedly any of PREFIXES that all names share. Anything else in the file
    (optimizer, random states, settings) is ignored.

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
        except (SafetensorError, AttributeError) as error:  # AttributeError: a dtype that this PyTorch lacks
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
    """Return the state dict nested in a file's content, or the content if there is none; log a choice among several."""
    if is_state(value) or not isinstance(value, dict):
        return value
    nested = {key: unwrapped(value[key], path) for key in (*KEYS, *AVERAGED_KEYS) if key in value}
    found = [key for key, inner in nested.items() if is_state(inner)]
    if not found:
        return value
    taken, *others = found
    if others or taken in AVERAGED_KEYS:
        averaged = ", which are averaged ones (EMA)" if taken in AVERAGED_KEYS else ""
        instead_of = f", not {listing(others)}" if others else ""
        log.info("weights %s: takes %s%s%s", path, taken, averaged, instead_of)
    return nested[taken]


def plain_names(state: State) -> dict[str, torch.Tensor]:
    """Remove counters, torch.compile's prefix and, repeatedly, PREFIXES that all names share; update old names."""
    plain = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in COUNTERS}
    renamed = {name.replace(COMPILED, ""): tensor for name, tensor in plain.items()}
    plain = renamed if len(renamed) == len(plain) else plain
    while prefix := next((p for p in PREFIXES if plain and all(name.startswith(p) for name in plain)), None):
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in plain.items()}


def classes_of(state: State) -> int | None:
    """Return the number of classes, the rows of the last two-dimensional weight; None without such a weight."""
    rows = [tensor.shape[0] for name, tensor in state.items() if name.endswith("weight") and tensor.dim() == 2]
    return rows[-1] if rows else None
