"""Imports point one way, nothing in the package can run foreign code, nothing heavy comes early."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import btr

PACKAGE = Path(btr.__file__).parent

# A module or folder imports from itself and from what stands before it, never from after it.
ORDER = [
    "errors",
    "bits",
    "merge",
    "binarize",
    "config",
    "files",
    "machine",
    "models",
    "stop_words",
    "data",
    "store",
    "retrieval",
    "readers",
    "encoding",
    "cluster",
    "indexing",
    "repairing",
    "planning",
    "occurrences",
    "coding_shards",
    "compressing",
    "choosing",
    "states",
    "answering",
    "evaluate",
    "train",
    "bench",
    "demo",
    "cli",
    "__main__",
]

# What can run code that a file brings along.
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.hub.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
UNSAFE_SWITCHES = {"allow_pickle", "trust_remote_code"}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Absolute names that a module imports anywhere in it, in functions and for types too."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            parent = (
                node.module or "" if not node.level else f"{base}.{node.module or ''}".strip(".")
            )
            # "from btr.store import reader" may name a module or something in one.
            names = {f"{parent}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {parent}
    return found


def unit(module: str) -> str:
    """``store`` for ``btr.store.reader``, "" for ``btr`` itself."""
    return module.split(".")[1] if "." in module else ""


def only_weights(call: ast.Call) -> bool:
    """Whether it is a ``torch.load`` by the unpickler that builds tensors and runs no code."""
    return ast.unparse(call.func) == "torch.load" and any(
        keyword.arg == "weights_only"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is True
        for keyword in call.keywords
    )


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What a module must not do, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in UNSAFE_MODULES:
                yield node.module
            yield from (
                name for a in node.names if (name := f"{node.module}.{a.name}") in UNSAFE_CALLS
            )
        elif isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in UNSAFE_CALLS and not only_weights(node):
                yield name
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in UNSAFE_SWITCHES and not off:
                    yield ast.unparse(keyword)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "btr"])
def test_imports_point_one_way(module: str) -> None:
    assert unit(module) in ORDER, f"give '{unit(module)}' its place in ORDER"
    for name in imports(module):
        if name.split(".")[0] == "btr" and unit(name):
            assert ORDER.index(unit(name)) <= ORDER.index(unit(module)), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_code_from_files(module: str) -> None:
    assert list(unsafe(ast.parse(MODULES[module].read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.load('x', weights_only=flag)",
        "torch.load('x', **{'weights_only': True})",
        "torch.hub.load('x', weights_only=True)",
        "from torch import load",
        "eval('1')",
        "yaml.load(f)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=flag)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_unsafe_code_would_be_found(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


def test_safe_code_passes() -> None:
    code = "model.eval()\njson.load(f)\nAutoModel.from_pretrained(n, trust_remote_code=False)"
    assert list(unsafe(ast.parse(code))) == []
    assert list(unsafe(ast.parse("torch.load('x', weights_only=True, mmap=True)"))) == []


def test_the_store_imports_no_torch_and_no_model() -> None:
    reached, waiting = set(), [m for m in MODULES if unit(m) == "store"]
    assert waiting
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports(module) & MODULES.keys()
    heavy = {"torch", "transformers", "tokenizers", "safetensors", "faiss", "tantivy"}
    for module in reached:
        assert not {name.split(".")[0] for name in imports(module)} & heavy, module


def test_importing_btr_and_the_store_loads_nothing_heavy() -> None:
    code = (
        "import sys, btr, btr.store.reader, btr.store.writer, btr.store.check; "
        "print(*({'torch', 'transformers', 'faiss', 'tantivy'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_public_names_are_sorted_and_exist() -> None:
    assert btr.__all__ == sorted(btr.__all__)
    for name in btr.__all__:
        assert getattr(btr, name) is getattr(import_module(btr._HOMES[name]), name)
        assert name in dir(btr)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        btr.nonsense  # noqa: B018 - the look-up is what is tested


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(MODULES["btr"].read_text(encoding="utf-8"))
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and "TYPE" in ast.unparse(node.test)
    )
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == btr._HOMES
    assert sorted(typed) == btr.__all__
