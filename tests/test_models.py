"""Students and teachers: by name, from a seed, from a file."""

import pytest
import torch
import torchvision
from conftest import same_weights

from utils.system.errors import InputError
from utils.training.models import build_model, build_student, build_teacher, load_weights


def test_the_student_is_torchvisions_after_the_seed():
    """Initial weights are those of torchvision right after torch.manual_seed; another seed gives others."""
    student = build_student("resnet18", 7, seed=3).state_dict()
    torch.manual_seed(3)
    assert same_weights(student, torchvision.models.resnet18(num_classes=7).state_dict())
    assert not same_weights(student, build_student("resnet18", 7, seed=4).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "resnet10t"])
def test_models_of_both_libraries(name):
    """torchvision's and, where it has none of that name, timm's."""
    assert build_model(name, 11).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 11)


@pytest.mark.parametrize(("name", "near"), [("resnet19", "resnet18"), ("mobilenetv2_", "mobilenet")])
def test_an_unknown_model_suggests_near_names(name, near):
    """In one sentence that names the flag."""
    with pytest.raises(InputError, match=f"^--arch {name} .*did you mean .*{near}"):
        build_model(name, 10, flag="--arch")


def test_a_name_near_nothing():
    """Says where the names are."""
    with pytest.raises(InputError, match="list_models"):
        build_model("0" * 30, 10)


def test_small_stem():
    """32 px images reach the first stage at 32 px; a model without that stem is refused."""
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


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "best_acc1": 1.5},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "model", "module.", "both"],
)
def test_weights_are_unwrapped(wrap, state, tmp_path):
    """Checkpoints of the usual shapes give the plain state dict, which fits the teacher."""
    torch.save(wrap(state), tmp_path / "teacher.pth")
    assert same_weights(load_weights(tmp_path / "teacher.pth"), state)
    teacher = build_teacher("resnet18", tmp_path / "teacher.pth")
    assert teacher.fc.out_features == 7  # the file says it
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert same_weights(teacher.state_dict(), state)


def test_safetensors(state, tmp_path):
    """Read without pickle; a damaged file is one sentence."""
    from safetensors.torch import save_file

    path = str(tmp_path / "teacher.safetensors")
    save_file(state, path)
    assert same_weights(load_weights(path), state)
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" + bytes(20))
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        load_weights(str(tmp_path / "bad.safetensors"))


def test_files_that_hold_no_weights(state, tmp_path):
    """Missing, something else, or another model's weights."""
    torch.save({"a": 1, "b": [2]}, tmp_path / "other.pth")
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"none\.pth does not exist"):
        load_weights(tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"other\.pth holds no state dict"):
        load_weights(tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"resnet18\.pth does not hold the weights of --arch resnet34"):
        build_teacher("resnet34", tmp_path / "resnet18.pth")
