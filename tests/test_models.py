"""Students and teachers are built by name, from a seed and from files of many kinds."""

import argparse
import pathlib
import re
import types
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import same_weights
from safetensors.torch import save_file

from utils.config import PRESETS
from utils.system.errors import InputError
from utils.training.models import build_model, build_student, build_teacher, load_weights, pretrained_name


def test_the_student_is_torchvisions_after_the_seed():
    """Initial weights are torchvision's after torch.manual_seed; another seed gives others."""
    student = build_student("resnet18", 7, seed=3).state_dict()
    torch.manual_seed(3)
    assert same_weights(student, torchvision.models.resnet18(num_classes=7).state_dict())
    assert not same_weights(student, build_student("resnet18", 7, seed=4).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "resnet10t"])
def test_models_of_both_libraries(name):
    """Models come from torchvision, or from timm if torchvision has no such name."""
    assert build_model(name, 11).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 11)


@pytest.mark.parametrize(("name", "near"), [("resnet19", "resnet18"), ("mobilenetv2_", "mobilenet")])
def test_an_unknown_model_suggests_near_names(name, near):
    """One sentence names the flag."""
    with pytest.raises(InputError, match=f"^--arch {name} .*did you mean .*{near}"):
        build_model(name, 10, flag="--arch")


def test_a_name_near_nothing():
    """The error says where the names are listed."""
    with pytest.raises(InputError, match="list_models"):
        build_model("0" * 30, 10)


def test_small_stem():
    """Images of 32 px reach the first stage at 32 px; a model without this stem is refused."""
    shapes = []
    model = build_student("resnet18", 10, 0, "small").eval()
    model.layer1.register_forward_hook(lambda _module, inputs, _output: shapes.append(inputs[0].shape))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert shapes == [(1, 64, 32, 32)]
    with pytest.raises(InputError, match=r"--stem small .*mobilenet_v2"):
        build_model("mobilenet_v2", 10, "small")


@pytest.fixture
def state():
    return build_student("resnet18", 7, 0).state_dict()


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def counted(state):
    """Return a state dict with the entries that thop adds to every layer and at the top."""
    return {**state, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)}


WRAPPED = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "best_acc1": 1.5},
    "model": lambda s: {"model": s},
    "net": lambda s: {"net": s, "acc": np.float64(93.1), "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "state_dict_ema": lambda s: {"state_dict_ema": s},
    "model_ema": lambda s: {"model_ema": prefixed("module.", s) | {"n_averaged": torch.tensor(9)}},
    "student": lambda s: {"student": prefixed("module.backbone.", s), "epoch": 1},
    "nested": lambda s: {"model": {"state_dict": s, "arch": "resnet18"}},
    "settings named model": lambda s: {"model": {"arch": "resnet18"}, "net": s},
    "module.": lambda s: prefixed("module.", s),
    "both": lambda s: {"state_dict": prefixed("module.", s)},
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "compiled, parallel": lambda s: prefixed("_orig_mod.module.", s),
    "parallel, compiled": lambda s: {"model": prefixed("module._orig_mod.", s)},
    "a compiled layer": lambda s: {name.replace("layer1.", "layer1._orig_mod."): value for name, value in s.items()},
    "Lightning": lambda s: {"state_dict": prefixed("model.", s), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    "backbone.": lambda s: {"state_dict": prefixed("model.backbone.", s)},
    "thop": lambda s: {"state_dict": counted(s)},
    "thop, parallel": lambda s: prefixed("module.", counted(s)),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_unwrapped(wrap, legacy, state, tmp_path):
    """Checkpoints of the usual forms give the plain state dict, bit by bit."""
    torch.save(wrap(state), tmp_path / "teacher.pth", _use_new_zipfile_serialization=not legacy)
    assert same_weights(load_weights(tmp_path / "teacher.pth"), state)


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    """The prefix may be the name of a module."""
    state = {"backbone.weight": torch.zeros(2, 2), "head.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "f.pth")
    assert same_weights(load_weights(tmp_path / "f.pth"), state)


def test_a_teacher_from_a_file(state, tmp_path):
    """The file gives the number of classes; the teacher is in eval mode and needs no gradients."""
    torch.save(state, tmp_path / "teacher.pth")
    teacher = build_teacher("resnet18", tmp_path / "teacher.pth")
    assert teacher.fc.out_features == 7
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert same_weights(teacher.state_dict(), state)


def test_a_densenet_under_its_old_names(tmp_path):
    """torchvision's file has `norm.1` for `norm1` and no batch counters."""
    state = build_student("densenet121", 5, 0).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.\w+)([12])\.", r"\1.\2.", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121.pth")
    assert same_weights(build_teacher("densenet121", tmp_path / "densenet121.pth").state_dict(), state)


def test_plain_weights_are_taken_before_averaged_ones(state, tmp_path, caplog):
    """The log says which weights were taken; averaged ones are taken if there are no others."""
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"state_dict_ema": other, "state_dict": state}, tmp_path / "both.pth")
    torch.save({"model_ema": other}, tmp_path / "ema.pth")
    caplog.set_level("INFO")
    assert same_weights(load_weights(tmp_path / "both.pth"), state)
    assert "both.pth: loads state_dict, not state_dict_ema" in caplog.text
    assert same_weights(load_weights(tmp_path / "ema.pth"), other)
    assert "ema.pth: loads model_ema (an EMA of the weights)" in caplog.text


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_other_content_of_training_checkpoints_is_skipped(legacy, state, tmp_path):
    """Checkpoints of timm and torchvision also hold settings, optimizer, scheduler and random states."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5]).state_dict(),  # has a Counter
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x"), device=torch.device("cpu"), size=torch.Size([2])),
        "config": types.SimpleNamespace(seed=1, names=[{"a"}, np.arange(3), np.array(["b"])]),
        "rng": [torch.get_rng_state(), np.random.get_state()],
        "best": np.float32(71.5),
    }
    torch.save(checkpoint, tmp_path / "f.pth", _use_new_zipfile_serialization=not legacy)
    assert same_weights(load_weights(tmp_path / "f.pth"), state)


def test_parameters_as_pytorch_0_3_wrote_them(tmp_path):
    """torchvision's first files hold `Parameter(tensor)` with a state, and tensors without `requires_grad`."""

    class Parameter:
        def __reduce__(self):
            tensor = self.tensor
            rebuilt = torch._utils._rebuild_tensor, (tensor.storage(), 0, (2, 3), (3, 1))
            return torch.nn.Parameter, (type("Tensor", (), {"__reduce__": lambda _: rebuilt})(),), (True, False, {})

    one = Parameter()
    one.tensor = torch.arange(6.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"fc.weight": one}, tmp_path / "f.pth", _use_new_zipfile_serialization=False)
    assert load_weights(tmp_path / "f.pth")["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_whole_pickled_model(legacy, tmp_path):
    """The error gives advice for this case, and nothing of the file is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old PyTorch could not store the source of this class
        torch.save(build_model("resnet18", 3), tmp_path / "f.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"f\.pth is refused: it is a whole pickled model .*state_dict\(\), path"):
        load_weights(tmp_path / "f.pth")


def test_safetensors(state, tmp_path):
    """The file is read without pickle; a damaged file gives one sentence."""
    path = str(tmp_path / "teacher.safetensors")
    save_file(state, path)
    assert same_weights(load_weights(path), state)
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" + bytes(20))
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        load_weights(str(tmp_path / "bad.safetensors"))


def test_files_that_hold_no_weights(tmp_path):
    """Missing files and other content are refused."""
    torch.save({"a": 1, "b": [2]}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"none\.pth does not exist"):
        load_weights(tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"other\.pth holds no state dict"):
        load_weights(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        (("resnet18", "small", None), ("resnet18", "standard", 32), "they fit --stem small"),
        (("resnet18", "standard", None), ("resnet18", "small", 32), "they fit --stem standard"),
        (("resnet50", "standard", None), ("resnet18", "standard", 32), "they fit --arch resnet50"),
        (("resnet34", "small", None), ("resnet18", "standard", 32), "they fit --arch resnet34 --stem small"),
        (("alexnet", "standard", None), ("resnet18", "standard", 64), "they fit --arch alexnet"),
        (("vit_tiny_patch16_224", "standard", 32), ("vit_tiny_patch16_224", "standard", 224), "fit --input-size 32"),
        (("vit_tiny_patch16_224", "standard", 224), ("vit_tiny_patch16_224", "standard", 32), "fit --input-size 224"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_mismatch_names_the_fitting_flags(made, asked, words, tmp_path, monkeypatch):
    """One sentence without full stop names the stem, architecture or input size that fits the file."""
    monkeypatch.setattr("utils.training.models.SEARCH_SECONDS", 60)  # enough for a busy machine
    name, stem, size = made
    torch.save(build_model(name, 7, stem, input_size=size).state_dict(), tmp_path / "f.pth")
    with pytest.raises(InputError) as caught:
        build_teacher(asked[0], tmp_path / "f.pth", asked[1], input_size=asked[2])
    sentence = str(caught.value)
    assert f"does not hold the weights of --arch {asked[0]}" in sentence
    assert sentence.endswith(words)
    assert ". " not in sentence
    teacher = build_teacher(name, tmp_path / "f.pth", stem, input_size=size)  # the advice is right
    assert teacher.eval()(torch.zeros(1, 3, size or 64, size or 64)).shape == (1, 7)


def test_a_mismatch_that_nothing_fits(tmp_path, monkeypatch):
    """The error names a few of the first differences."""
    monkeypatch.setattr("utils.training.models.SEARCH_SECONDS", 0)  # the search would find nothing anyway
    state = build_student("resnet18", 7, 0).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    del state["bn1.bias"]
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "f.pth")
    with pytest.raises(InputError) as caught:
        build_teacher("resnet18", tmp_path / "f.pth")
    assert (
        "lacks bn1.bias, also has extra, has other shapes of layer1.0.conv1.weight ([1, 2], not [64, 64, 3, 3])"
        in str(caught.value)
    )


def test_classes_are_those_of_the_classifier(tmp_path):
    """The classifier is a 1x1 convolution (SqueezeNet), or its names come sorted from safetensors."""
    for name, size in (("squeezenet1_1", 64), ("swin_tiny_patch4_window7_224", 32)):
        state = build_model(name, 7, input_size=size).state_dict()
        save_file({key: state[key].clone() for key in sorted(state)}, tmp_path / "f.safetensors")
        teacher = build_teacher(name, tmp_path / "f.safetensors", input_size=size)
        assert teacher(torch.zeros(1, 3, size, size)).shape == (1, 7)


@pytest.fixture
def fetched(monkeypatch):
    """Replace the libraries' downloads; return the list of requested (name, weights)."""
    asked = []

    def get_model(name, weights=None, **_):
        asked.append((name, weights))
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))

    def create_model(name, pretrained=False, **more):
        asked.append((name, pretrained))
        assert "num_classes" not in more  # timm would add a random classifier
        model = get_model(name)
        asked.pop()
        model.num_classes = 1000
        return model

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    monkeypatch.setattr(timm, "create_model", create_model)
    return asked


@pytest.mark.parametrize("name", sorted({name for preset in PRESETS.values() for name in preset.names}))
def test_the_teachers_of_prism_are_torchvisions_first(name, fetched):
    """`pretrained=True` in PRISM's code is IMAGENET1K_V1; for most models DEFAULT is another teacher."""
    build_teacher(name)
    build_teacher(name, weights="DEFAULT")
    enum = torchvision.models.get_model_weights(name)
    assert fetched == [(name, enum.IMAGENET1K_V1), (name, enum.DEFAULT)]
    newer = name in ("resnet50", "resnet101", "mobilenet_v2")
    assert (enum.DEFAULT is not enum.IMAGENET1K_V1) == newer


def test_weights_by_name(fetched):
    """Every weight name of the library works; an unknown one is refused with the list."""
    build_teacher("resnet50", weights="IMAGENET1K_V2")
    build_teacher("regnet_y_128gf")  # has no IMAGENET1K_V1
    build_teacher("resnet10t")
    build_teacher("resnet10t", weights="c3_in1k")
    assert [(name, getattr(weights, "name", weights)) for name, weights in fetched] == [
        ("resnet50", "IMAGENET1K_V2"),
        ("regnet_y_128gf", "IMAGENET1K_SWAG_E2E_V1"),
        ("resnet10t.c3_in1k", True),
        ("resnet10t.c3_in1k", True),
    ]
    assert pretrained_name("resnet50", "DEFAULT") == "IMAGENET1K_V2"
    assert pretrained_name("resnet10t", "DEFAULT") == "c3_in1k"
    with pytest.raises(InputError, match=r"--weights V3: resnet50 .* IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT$"):
        pretrained_name("resnet50", "V3")
    with pytest.raises(InputError, match=r"--teacher-weights IMAGENET1K_V1: resnet10t .* c3_in1k, DEFAULT$"):
        pretrained_name("resnet10t", "IMAGENET1K_V1", "--teacher-model")


def test_pretrained_weights_that_cannot_be_used(monkeypatch):
    """A small stem would be random, position embeddings fit one size, or there is no network."""
    with pytest.raises(InputError, match=r"--stem small: pretrained weights of --arch resnet18"):
        build_teacher("resnet18", stem="small")
    with pytest.raises(InputError, match=r"--arch vit_b_16: .* IMAGENET1K_V1 are for --input-size 224, not 32"):
        build_teacher("vit_b_16", input_size=32)

    def no_network(*_, **__):
        raise OSError("<urlopen error. Name or service not known.>")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"IMAGENET1K_V1 cannot be downloaded or loaded \(<urlopen error; Name"):
        build_teacher("alexnet")


def test_a_failed_download_is_not_blamed_on_the_size(monkeypatch):
    """The hub's errors are ValueErrors as well, like those of a model that cannot have a size."""

    class NotFoundError(OSError, ValueError):
        pass

    def create(name, pretrained=False, create=timm.create_model, **options):
        if pretrained:
            raise NotFoundError("no connection")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(InputError, match=r"its pretrained weights .* cannot be downloaded or loaded \(no connection\)"):
        build_teacher("vit_tiny_patch16_224", input_size=32)


@pytest.mark.parametrize(
    "name", ["vit_b_16", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_models_of_one_size_are_built_for_another(name):
    """Position embeddings and windows follow --input-size."""
    assert build_model(name, 3, input_size=32).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "resnet10t", "xcit_nano_12_p16_224"])
def test_an_input_size_changes_no_weight_where_any_size_works(name):
    """Students of earlier releases stay bit-identical."""
    torch.manual_seed(3)
    before = (
        timm.create_model(name, num_classes=5)
        if timm.is_model(name) and name != "resnet18"
        else torchvision.models.get_model(name, num_classes=5)
    )
    assert same_weights(build_student(name, 5, 3, input_size=32).state_dict(), before.state_dict())


@pytest.mark.parametrize(("name", "size"), [("vit_h_14", 32), ("maxvit_t", 32)])
def test_sizes_that_a_model_cannot_have(name, size):
    """One sentence names both flags."""
    with pytest.raises(InputError, match=f"^--model {name} cannot be built for --input-size {size} ") as caught:
        build_model(name, 3, input_size=size)
    assert ". " not in str(caught.value)


@pytest.mark.parametrize("base", ["resnet18", "resnet50", "resnet101"])
def test_the_usual_name_of_a_small_stem_is_explained(base):
    """The error gives the script's flags for it."""
    with pytest.raises(InputError, match=f"give --model {base} --stem small$"):
        build_model(f"{base}_modified", 10)
    with pytest.raises(InputError, match=f"give --teacher-model {base} --teacher-stem small$"):
        build_model(f"{base}_modified", 10, flag="--teacher-model")
