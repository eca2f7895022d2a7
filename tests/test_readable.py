"""Rules for readable code that ruff does not know; complexity is limited by ruff (C901 and PLR0912 in pyproject.toml).

python tests/test_readable.py      prints every broken rule with file, line and text
"""

import ast
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path

import pytest

from utils.config import Findings, FKDConfig

ROOT = Path(__file__).parents[1]
CONFIG = "utils/config.py"  # the one module that may hold and fill the settings of a run
SCRIPTS = [ROOT / name for name in ("train_FKD_parallel.py", "train_KD_parallel.py", "relabel_FKD.py")]
FOLDERS = [ROOT / name for name in ("utils", "patches", "scripts")]
FILES = sorted(
    str(path.relative_to(ROOT)) for path in [*SCRIPTS, *(file for folder in FOLDERS for file in folder.rglob("*.py"))]
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FIRST_WORDS = ("Of", "Be", "As", "What")  # a docstring that begins with one of these must be read twice
SETTINGS = ("args", "config")


@cache
def tree_of(file):
    """Return the syntax tree of a file, whose path is relative to the project's folder."""
    return ast.parse((ROOT / file).read_text())


def packed_tuples(tree):
    """Find tuples that a function packs only to unpack them in a call: `what = a, b` and then `f(*what)`."""
    for function in (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)):
        packed = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            for word in call.args:
                if isinstance(word, ast.Starred) and isinstance(word.value, ast.Name) and word.value.id in packed:
                    yield f"line {word.lineno}: *{word.value.id}"


def unclear_docstrings(tree):
    """Find docstrings that begin with one of `FIRST_WORDS`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            text = ast.get_docstring(node) or ""
            if text.startswith(tuple(f"{word} " for word in FIRST_WORDS)):
                yield f"{getattr(node, 'name', 'module')}: {text.splitlines()[0]}"


def changed_settings(tree):
    """Find statements that write an attribute of the settings after they were parsed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            owner = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            owner = node.args[0]
        else:
            continue
        if isinstance(owner, ast.Name) and owner.id in SETTINGS:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def namespaces(tree):
    """Find uses of `argparse.Namespace`; a string does not count, as in the table of classes that a pickle may name."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [node.id] if isinstance(node, ast.Name) else [node.attr] if isinstance(node, ast.Attribute) else []
        if "Namespace" in names:
            yield f"line {node.lineno}"


RULES = {
    "no tuple is packed for a call": packed_tuples,
    "docstrings begin with a verb or a noun": unclear_docstrings,
    "settings do not change": changed_settings,
    "settings are no Namespace": namespaces,
}
ALLOWED = {"settings do not change": {CONFIG}, "settings are no Namespace": {CONFIG}}
CASES = [(rule, file) for rule in RULES for file in FILES if file not in ALLOWED.get(rule, ())]


@pytest.mark.parametrize(("rule", "file"), CASES, ids=[f"{file}: {rule}" for rule, file in CASES])
def test_the_code_follows_the_rules(rule, file):
    found = list(RULES[rule](tree_of(file)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("no tuple is packed for a call", "def f(a, b):\n    what = a, b\n    return g(*what)"),
        ("docstrings begin with a verb or a noun", 'def f():\n    """Of a batch."""'),
        ("docstrings begin with a verb or a noun", '"""What training takes."""'),
        ("settings do not change", "def f(args):\n    args.model = 1"),
        ("settings do not change", "def f(args):\n    args.model += 1"),
        ("settings do not change", "setattr(config, name, 1)"),
        ("settings are no Namespace", "from argparse import Namespace"),
        ("settings are no Namespace", "def f(args: argparse.Namespace): ..."),
    ],
)
def test_a_broken_rule_is_found(rule, code):
    assert list(RULES[rule](ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "def f(a, b):\n    what = a, b\n    return g(what)",
        "WHAT = 1, 2\ndef f():\n    return g(*WHAT)",
        'def f():\n    """Ask."""',
        "model = args.model",
        'ALLOWED = {"argparse.Namespace": Settings}',
    ],
)
def test_other_code_passes(code):
    assert not [found for rule in RULES.values() for found in rule(ast.parse(code))]


def test_settings_cannot_be_written():
    """A config and its findings are frozen."""
    for settings in (FKDConfig(), Findings()):
        with pytest.raises(FrozenInstanceError):
            settings.model = "resnet50"


def main():
    """Print what the rules find, one line for each place."""
    for rule, file in CASES:
        for found in RULES[rule](tree_of(file)):
            print(f"{rule}: {file}: {found}")


if __name__ == "__main__":
    main()
