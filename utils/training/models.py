"""Build students and teachers by name.

A name denotes a network of the papers on dataset condensation, a model of torchvision or timm, or a function in a
user's file. timm is imported only if torchvision lacks the model.
"""

import difflib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from utils.system.errors import InputError, clause, listing
from utils.system.model_names import AMBIGUOUS, CONVNET_FORM, EXAMPLES, network_name, split_file_name, squashed
from utils.training.convnets import build_network
from utils.training.own_model import build_own_model, load_function, takes
from utils.training.weights import State, channels_of, classes_of, load_weights

USUAL_SIZE = 224  # torchvision's default for the side of a model's images, in pixels
OTHER_SIZES = 32, 64, 224, 128, 96, 112, 160, 192, 256, 288, 384, 448, 512
# If the weights in a file do not fit the chosen model, other architectures are tried for about this many seconds.
SEARCH_SECONDS = 4
# architectures to try if the weights in a file do not fit the chosen model: name of a weight in the file -> names of
# common models that have a weight of this name
SEARCHED = {
    "layer1.0.conv1.weight": "resnet18 resnet50 resnet101 resnet34 resnet152 wide_resnet50_2 resnext50_32x4d",
    "features.0.weight": "convnet3 convnet3_bn convnet4 convnet4_bn convnet5 convnet5_bn convnet6 convnet6_bn "
    "dc_alexnet dc_vgg11 dc_vgg11_bn dc_lenet alexnet vgg11 vgg16 vgg11_bn vgg16_bn squeezenet1_1",
    "features.0.0.weight": "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large efficientnet_b0 convnext_tiny swin_t",
    "stage2.0.branch2.0.weight": "shufflenet_v2_x0_5 shufflenet_v2_x1_0",
    "features.conv0.weight": "densenet121 densenet169",
    "stem.0.weight": "regnet_y_400mf regnet_x_400mf",
    "class_token": "vit_b_16 vit_b_32",
    "patch_embed.proj.weight": "deit_tiny_patch16_224 deit_small_patch16_224 swin_tiny_patch4_window7_224",
}


def build_model(
    name: str,
    num_classes: int,
    stem: str = "standard",
    flag: str = "--model",
    input_size: int | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """Return a classifier with `num_classes` outputs and random weights.

    Args:
        name: name of the model. It is a network of dataset condensation (see `network_name`), a model of torchvision
            or, if torchvision has no such model, of timm, or a function in a file (`path/to/file.py:function`).
        stem: `standard`, or `small` to replace a ResNet's 7x7/2 convolution and max-pool by a 3x3/1 convolution. A
            small stem is meant for images of 32 to 64 px; papers call such a ResNet-18 `resnet18_modified`.
        flag: the command-line flag that set `name`; error messages mention it.
        input_size: side of the images in pixels, used only by models that are built for a fixed size. None: the model's
            default size.
        in_channels: number of channels of the images, 3 or 1. Models of torchvision and timm take 3.

    Raises:
        InputError: the model is unknown (the message suggests similar names), has no ResNet stem to replace, or
            cannot be built for `in_channels` or `input_size`.
    """
    network = network_name(name)
    if split_file_name(name):
        model = build_own_model(name, num_classes, in_channels, input_size, flag)
    elif network:
        model = build_network(network, num_classes, in_channels, input_size, flag)
    else:
        model = _build_from_library(name, num_classes, flag, input_size, in_channels)
    if stem == "small":
        _shrink_stem(model, name, flag)
    return model


def _build_from_library(name: str, num_classes: int, flag: str, input_size: int | None, in_channels: int) -> nn.Module:
    """Return a model of torchvision or timm with random weights; for the arguments, see `build_model`."""
    if not in_torchvision(name):
        refuse_unknown(name, flag)
    if in_channels != 3:
        raise InputError(
            f"{flag} {name} takes images of 3 channels, not {in_channels}; choose a network that takes grey images, "
            "for instance convnet"
        )
    extra: dict[str, Any] = sized(name, input_size)
    if in_torchvision(name):
        if name in ("googlenet", "inception_v3"):
            extra = {"aux_logits": False, "init_weights": True}
        return _built(
            torchvision.models.get_model, name, flag, input_size, weights=None, num_classes=num_classes, **extra
        )
    import timm

    return _built(timm.create_model, name, flag, input_size, pretrained=False, num_classes=num_classes, **extra)


def _built(make: Any, name: str, flag: str, side: int | None, /, **options: Any) -> nn.Module:
    """Return the model `make(name, **options)`.

    Raises:
        InputError: `options` contain an input size, and the call fails. The message blames the input size `side`.
    """
    try:
        return make(name, **options)
    except (ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        if not options.keys() & {"image_size", "input_size", "img_size"}:
            raise
        raise InputError(
            f"{flag} {name} cannot be built for --input-size {side} ({clause(error)}); choose a size that its "
            "patches and windows divide, or another model"
        ) from None


def in_torchvision(name: str) -> bool:
    """Return whether torchvision has a classifier called `name`."""
    return name in torchvision.models.list_models(module=torchvision.models)


def sized(name: str, input_size: int | None) -> dict[str, Any]:
    """Return the constructor arguments that make the model `name` take images with sides of `input_size` pixels.

    The dict is empty if `input_size` is None or the model's default size, or if the model takes images of any size.
    """
    if input_size is None:
        return {}
    if network_name(name) or split_file_name(name):
        return {"input_size": input_size}
    if in_torchvision(name):
        if input_size == USUAL_SIZE:
            return {}
        if name.startswith("vit_"):
            return {"image_size": input_size}
        return {"input_size": (input_size, input_size)} if name.startswith("maxvit_") else {}
    from timm.models import get_pretrained_cfg

    usual = get_pretrained_cfg(name)
    return {"img_size": input_size} if usual and usual.fixed_input_size and usual.input_size[-1] != input_size else {}


def refuse_unknown(name: str, flag: str) -> None:
    """Raise InputError if timm has no model called `name`; the error suggests similar names.

    Call this function only if torchvision has no model of that name.
    """
    import timm

    if timm.is_model(name):
        return
    base = name.removesuffix("_modified")
    if base != name and in_torchvision(base):
        raise InputError(
            f"{flag} {name} is the field's name of a {base} with a small stem; give {flag} {base} "
            f"{stem_flag(flag)} small"
        )
    spelling = squashed(name)
    if spelling in AMBIGUOUS:
        theirs, ours = AMBIGUOUS[spelling]
        raise InputError(
            f"{flag} {name} may mean two models; give {flag} {theirs} for torchvision's, or {flag} {ours} for that of "
            "dataset condensation"
        )
    if spelling.startswith("convnet"):
        raise InputError(f"{flag} {name} is no ConvNet's name; the form is {CONVNET_FORM}")
    # suggest networks of dataset condensation first, but only those with very similar names
    spellings = {squashed(one).removeprefix("dc"): one for one in EXAMPLES}
    near = [spellings[one] for one in difflib.get_close_matches(spelling, spellings, n=2, cutoff=0.8)]
    known = {*torchvision.models.list_models(module=torchvision.models), *timm.list_models()}
    near += difflib.get_close_matches(name, known, n=4 - len(near), cutoff=0.5)
    hint = f"did you mean {listing(near)}?" if near else "see torchvision.models.list_models() and timm.list_models()"
    raise InputError(f"{flag} {name} is neither a torchvision nor a timm model; {hint}")


def stem_flag(flag: str) -> str:
    """Return the stem flag for a model flag: --teacher-stem if `flag` starts with --teacher, else --stem."""
    return "--teacher-stem" if flag.startswith("--teacher") else "--stem"


def weights_flag(flag: str) -> str:
    """Return the weights flag for a model flag: --teacher-weights if `flag` starts with --teacher, else --weights."""
    return "--teacher-weights" if flag.startswith("--teacher") else "--weights"


def checkpoint_flag(flag: str) -> str:
    """Return the flag for a model's file: --teacher-checkpoint if `flag` starts with --teacher, else --checkpoint."""
    return "--teacher-checkpoint" if flag.startswith("--teacher") else "--checkpoint"


def _shrink_stem(model: nn.Module, name: str, flag: str) -> None:
    old = getattr(model, "conv1", None)
    if not isinstance(old, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise InputError(
            f"{stem_flag(flag)} small needs a ResNet with conv1 and maxpool, and {name} has none; leave the flag out"
        )
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=old.bias is not None)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def takes_channels(name: str) -> bool:
    """Return whether the model `name` can be built for images with one channel as well as with three.

    Such models are the networks of dataset condensation, and functions in files that take `in_channels`.
    """
    if not split_file_name(name):
        return network_name(name) is not None
    try:
        return takes(load_function(name), "in_channels")
    except InputError:  # `build_model` will raise this error again, with the user's flag
        return False


def build_student(
    name: str,
    num_classes: int,
    seed: int,
    stem: str = "standard",
    input_size: int | None = None,
    in_channels: int = 3,
) -> nn.Module:
    """Seed PyTorch's global random generator with `seed`, then return a student with random initial weights."""
    torch.manual_seed(seed)
    return build_model(name, num_classes, stem, input_size=input_size, in_channels=in_channels)


def pretrained_name(name: str, asked: str | None = None, flag: str = "--arch") -> str:
    """Choose the pretrained weights of a model, and return the name of the weights in torchvision or timm.

    Args:
        name: name of a torchvision or timm model.
        asked: name of the weights. DEFAULT means the library's default; in torchvision, these are the newest weights.
            None means IMAGENET1K_V1 if the model has these weights, else DEFAULT. (`pretrained=True` in the code of
            other projects also loads IMAGENET1K_V1.)
        flag: the command-line flag that set `name`; error messages mention it.

    Returns:
        name of a member of the model's weights enum in torchvision, or a tag in timm.

    Raises:
        InputError: the model is unknown, has no pretrained weights, or has no weights called `asked`.
    """
    known: dict[str, str]
    if network_name(name) or split_file_name(name):
        known, usual = {}, ""
    elif in_torchvision(name):
        names = torchvision.models.get_model_weights(name).__members__
        known = {key: weights.name for key, weights in names.items()}
        usual = "IMAGENET1K_V1" if "IMAGENET1K_V1" in known else "DEFAULT"
    else:
        import timm
        from timm.models import get_pretrained_cfg

        refuse_unknown(name, flag)
        base, _, usual = name.partition(".")
        tags = [
            other.partition(".")[2] for other in timm.list_pretrained(f"{base}*") if other.partition(".")[0] == base
        ]
        known = {tag: tag for tag in tags if tag and usual in ("", tag)}
        default = get_pretrained_cfg(name)
        if tags and default:
            known["DEFAULT"] = default.tag or "DEFAULT"
        usual = "DEFAULT"
    if not known:
        raise InputError(f"{flag} {name} has no pretrained weights; give a file with its weights")
    if (asked or usual) not in known:
        raise InputError(
            f"{weights_flag(flag)} {asked}: {name} has no such weights; choose one of {listing(known, 12)}"
        )
    return known[asked or usual]


def build_pretrained(name: str, weights: str, flag: str = "--arch", input_size: int | None = None) -> nn.Module:
    """Return the classifier `name` of torchvision or timm with the pretrained weights called `weights`.

    `weights` must be a name that `pretrained_name` returned.

    Raises:
        InputError: the weights cannot be downloaded, do not fit the input size, or include no classifier.
    """
    try:
        if in_torchvision(name):
            chosen = torchvision.models.get_model_weights(name)[weights]
            side = chosen.meta.get("min_size", (USUAL_SIZE,))[0]
            if sized(name, 1) and input_size not in (None, side):
                raise InputError(
                    f"{flag} {name}: its pretrained weights {weights} are for --input-size {side}, not {input_size}; "
                    "give that size, or a file with weights for yours"
                )
            return torchvision.models.get_model(name, weights=chosen)
        import timm

        tagged = name if weights == "DEFAULT" else f"{name.partition('.')[0]}.{weights}"
        # if input_size is not the size that the weights were trained for, timm resamples the position embeddings
        model = timm.create_model(tagged, pretrained=True, **sized(tagged, input_size))
    except (OSError, RuntimeError) as error:  # for example no network, or an incomplete download
        raise InputError(
            f"{flag} {name}: its pretrained weights {weights} cannot be downloaded or loaded ({clause(error)}); give a "
            "file with its weights"
        ) from None
    if not getattr(model, "num_classes", None):
        raise InputError(f"{flag} {name}: its pretrained weights {weights} have no classifier; choose others")
    return model


def build_teacher(
    name: str,
    checkpoint: Path | str | None = None,
    stem: str = "standard",
    num_classes: int = 1000,
    flag: str = "--arch",
    weights: str | None = None,
    input_size: int | None = None,
    in_channels: int | None = None,
) -> nn.Module:
    """Return a teacher with trained weights, in eval mode and without gradients.

    Args:
        name: name of a torchvision or timm model; with `checkpoint`, any name that `build_model` accepts.
        checkpoint: file with the teacher's weights. None: load pretrained weights of torchvision or timm.
        stem: `standard` or `small`, see `build_model`.
        num_classes: number of classes, used only if the weights in the file do not reveal it.
        flag: the command-line flag that set `name`; error messages mention it.
        weights: name of the pretrained weights, see argument `asked` of `pretrained_name`; unused with `checkpoint`.
        input_size: side of the images in pixels, see `build_model`.
        in_channels: number of channels of the images; None if unknown. Used only with `checkpoint`, for models that can
            take 1 or 3. If None, or if the weights do not fit, the number that the weights suggest is tried.

    Raises:
        InputError: the model is unknown, or the weights cannot be loaded or do not fit the model.
    """
    if checkpoint is None:
        if stem == "small":
            raise InputError(
                f"{stem_flag(flag)} small: pretrained weights of {flag} {name} are for the standard stem; give a file "
                "with its weights"
            )
        teacher = build_pretrained(name, pretrained_name(name, weights, flag), flag, input_size)
    elif not Path(checkpoint).is_file():
        raise InputError(f"{checkpoint_flag(flag)} {checkpoint} does not exist; give a file with the weights of {name}")
    else:
        state = load_weights(checkpoint)
        likely = channels_of(state) or 3
        # try the images' number of channels first: grouped convolutions and MLPs do not reveal the model's number
        for channels in dict.fromkeys((in_channels or likely, likely)) if takes_channels(name) else (3,):
            teacher = build_model(name, classes_of(state) or num_classes, stem, flag, input_size, channels)
            own = shapes_of(teacher.state_dict())
            if not fit(own, state):
                classifier = classifier_of(own)
                classes = state[classifier].shape[0] if classifier in state and state[classifier].dim() else num_classes
                teacher = build_model(name, classes, stem, flag, input_size, channels)
            if fit(shapes_of(teacher.state_dict()), state):
                break
        else:
            with_stem = " with a small stem" if stem == "small" else ""
            raise InputError(
                f"{checkpoint} does not hold the weights of {flag} {name}{with_stem}"
                f"{advice(own, state, name, stem, flag, input_size)}"
            )
        teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False)


Shapes = Mapping[str, torch.Size]


def shapes_of(state: State) -> dict[str, torch.Size]:
    """Return the shape of each tensor by name, except batch norm's counters `num_batches_tracked`.

    Files from before PyTorch 0.4.1 lack these counters. Weights from such files should still fit.
    """
    return {name: tensor.shape for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def classifier_of(shapes: Shapes) -> str:
    """Return the name of the classifier's weight, which is the model's last weight of two or four dimensions."""
    return [name for name, shape in shapes.items() if name.endswith("weight") and len(shape) in (2, 4)][-1]


def fit(shapes: Shapes, state: State, any_classes: bool = False) -> bool:
    """Return whether the tensors of a state dict fit a model.

    Args:
        shapes: names and shapes of the model's tensors.
        state: the state dict.
        any_classes: whether the state dict may have another number of classes than the model.
    """
    found = shapes_of(state)
    if found.keys() != shapes.keys():
        return False
    last = classifier_of(shapes) if any_classes else ""
    free = {last, f"{last.removesuffix('weight')}bias"}
    return all(
        found[name] == shape or (name in free and found[name][1:] == shape[1:]) for name, shape in shapes.items()
    )


def advice(own: Shapes, state: State, name: str, stem: str, flag: str, input_size: int | None = None) -> str:
    """Return the end of the error message for weights that do not fit the model `name`.

    This text names the flags of a model that fits the weights. If no such model is found, the text lists the
    differences between the file and the model `name`.

    Args:
        own: names and shapes of the model's weights.
        state: the weights of the file.
        name, stem: name of the model and its stem, as given by the user.
        flag: the command-line flag that set `name`.
        input_size: side of the images in pixels, or None.
    """
    other_stem = "small" if stem == "standard" else "standard"
    ways: list[tuple[str, str, int | None, str]] = [(name, other_stem, None, f"{stem_flag(flag)} {other_stem}")]
    found = shapes_of(state)
    if found.keys() == own.keys() and sized(name, 1):
        ways += [(name, stem, side, f"--input-size {side}") for side in OTHER_SIZES]
    likely = " ".join(names for weight, names in SEARCHED.items() if weight in found).split()
    for other in [other for other in likely if other != name]:
        ways += [(other, "standard", input_size if network_name(other) else None, f"{flag} {other}")]
        if "resn" in other:
            ways += [(other, "small", None, f"{flag} {other} {stem_flag(flag)} small")]
    end = time.monotonic() + SEARCH_SECONDS
    for other, its_stem, side, words in ways:
        if time.monotonic() > end:
            break
        shapes = skeleton(other, its_stem, side, (channels_of(state) or 3) if takes_channels(other) else 3)
        if shapes and fit(shapes, state, any_classes=True):
            return f"; they fit {words}"
    missing = [key for key in own if key not in found]
    extra = [key for key in found if key not in own]
    reshaped = [key for key in own if key in found and found[key] != own[key]]
    differences = []
    if missing:
        differences.append(f"lacks {listing(missing, 3)}")
    if extra:
        differences.append(f"also has {listing(extra, 3)}")
    if reshaped:
        shapes_found = [f"{key} ({list(found[key])}, not {list(own[key])})" for key in reshaped]
        differences.append(f"has other shapes of {listing(shapes_found, 3)}")
    return f" (the file {', '.join(differences)}); give the {flag} that it was trained as"


def skeleton(name: str, stem: str, input_size: int | None, in_channels: int = 3) -> Shapes | None:
    """Return the names and shapes of the weights of a model with 1,000 classes; None if the model cannot be built."""
    # the meta device needs no memory, but constructors that compute with weight values work only on the CPU
    for device in "meta", "cpu":
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                model = build_model(name, 1000, stem, input_size=input_size, in_channels=in_channels)
                return shapes_of(model.state_dict())
        except InputError:
            return None
        except (NotImplementedError, RuntimeError):
            continue
    return None
