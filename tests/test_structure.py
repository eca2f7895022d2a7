"""A lower layer of utils/ never imports a higher one, and no import is circular."""

import ast
from pathlib import Path

import pytest

UTILS = Path(__file__).parents[1] / "utils"
WINGS = "system config labels data images training run report".split()  # a wing imports itself and those before it
MODULES = sorted(path for path in UTILS.rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    """Return the module name: `utils/labels/sre2l.py` -> `labels.sre2l`."""
    return ".".join(path.relative_to(UTILS).with_suffix("").parts)


# the entry points, `python -m utils.labels` and so on, wire things together as the scripts do
TREES = {name_of(path): ast.parse(path.read_text()) for path in MODULES if path.name != "__main__.py"}


def imported(tree):
    """Return the modules of utils that a module imports, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("utils"):
            base = node.module.removeprefix("utils").lstrip(".")
            names |= {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("utils.") for alias in node.names}
    return names & TREES.keys()


def test_every_folder_has_a_layer():
    """A new folder must be added to the list of layers."""
    assert {name.split(".")[0] for name in TREES} == set(WINGS)


@pytest.mark.parametrize("name", TREES)
def test_no_module_imports_a_higher_layer(name):
    """A lower wing never imports a higher one."""
    height = WINGS.index(name.split(".")[0])
    above = [other for other in imported(TREES[name]) if WINGS.index(other.split(".")[0]) > height]
    assert not above


def test_no_import_cycles():
    """No module is needed for its own import, however long the way."""
    needs = {name: imported(tree) - {name} for name, tree in TREES.items()}
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs


TESTS = sorted(Path(__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=[path.name for path in TESTS])
def test_no_module_of_tests_imports_another_with_tests(path):
    """Functions that several tests need are in helpers.py or in a module named after their purpose."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    assert not [name for name in names if name.rpartition(".")[2].startswith("test_")]
