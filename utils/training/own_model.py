"""Build a model by calling a function in a Python file, which the user names as `path/to/file.py:function`."""

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from utils.system.errors import InputError, clause
from utils.system.files import digest_of
from utils.system.model_names import split_file_name


def build_own_model(
    name: str, num_classes: int, in_channels: int = 3, input_size: int | None = None, flag: str = "--model"
) -> nn.Module:
    """Return the model that a function in a file makes.

    The function is called with `num_classes`, and with `in_channels` and `input_size` if it takes them.

    Args:
        name: path of the file and name of the function or class, `path/to/file.py:function`.
        num_classes: number of outputs that the model must have.
        in_channels: C, number of channels of the images.
        input_size: S, side of the images in pixels. If None, the function is called without `input_size`.
        flag: the command-line flag that set `name`; error messages mention it.

    Raises:
        InputError: there is no such file or function; the function cannot be called with these arguments, fails, or
            returns no module; or the images have one channel, and the function does not take `in_channels`.
    """
    function = load_function(name, flag)
    offered: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    if input_size is not None:
        offered["input_size"] = input_size
    wanted = {key: value for key, value in offered.items() if takes(function, key)}
    if "num_classes" not in wanted:
        raise InputError(f"{flag} {name} does not take num_classes; give it an argument of this name")
    if in_channels != 3 and "in_channels" not in wanted:
        raise InputError(
            f"{flag} {name} does not take in_channels, and the images have {in_channels} channel; give it an argument "
            "of this name"
        )
    try:
        inspect.signature(function).bind(**wanted)
    except TypeError as error:
        raise InputError(
            f"{flag} {name} cannot be called with {', '.join(wanted)} alone ({clause(error)}); give its other "
            "arguments defaults"
        ) from None
    try:
        model = function(**wanted)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"{flag} {name} failed: {type(error).__name__}: {clause(error)}; mend the function") from None
    if not isinstance(model, nn.Module):
        raise InputError(f"{flag} {name} returned {type(model).__name__}, not a torch.nn.Module; return the model")
    return model


def takes(function: Callable, argument: str) -> bool:
    """Return whether a function can be called with the keyword argument `argument`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions have no signature
        return False
    named = argument in parameters and parameters[argument].kind is not inspect.Parameter.POSITIONAL_ONLY
    return named or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def load_function(name: str, flag: str = "--model") -> Callable:
    """Return the function or class that `name`, `path/to/file.py:function`, refers to.

    A file is imported once per process. The import leaves the state of PyTorch's CPU generator unchanged, so that it
    does not affect the model's initial weights.

    Raises:
        InputError: there is no such file or function, or the file cannot be imported.
    """
    path, function = split_file_name(name) or (name, "")
    if not os.path.isfile(path):
        raise InputError(f"{flag} {name}: there is no file {path}; check its path")
    if not function:
        raise InputError(
            f"{flag} {name} names no function; give {flag} {name.rstrip(':')}:FUNCTION, which makes the model"
        )
    try:
        module = import_file(os.path.abspath(path))
    except Exception as error:  # the user's code may raise anything
        hint = (
            "; add the folders of the modules that it imports to PYTHONPATH" if isinstance(error, ImportError) else ""
        )
        raise InputError(
            f"{flag} {name}: {path} cannot be imported ({type(error).__name__}: {clause(error)}){hint}"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        what = "no function" if found is None else "something else"
        raise InputError(f"{flag} {name}: {path} has {what} called {function}; name a function that returns the model")
    return found


@cache
def import_file(path: str) -> Any:
    """Run the Python file at the absolute path `path`, and return its module."""
    unique = f"model_file_{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickle look up the module of a class in sys.modules
    try:
        with torch.random.fork_rng(devices=[]):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def source_digest(name: str) -> str | None:
    """Return the digest of the file of a model `path/to/file.py:function`; None for a model of any other name."""
    split = split_file_name(name)
    return digest_of(split[0]) if split else None
