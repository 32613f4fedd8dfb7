"""The mean of checkpoints is a reader, and only readers of one kind have one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from btr.errors import CorruptError
from btr.readers.bert import BertReader
from btr.readers.digests import check_digests, write_digests
from btr.readers.t5 import T5Reader
from btr.train.average import average_checkpoints, main
from cli_lines import one_line
from tiny_readers import make_reader
from tiny_t5 import make_t5, t5_tokenizer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def shift(folder: Path, by: float) -> None:
    """Give a checkpoint other weights."""
    moved = {name: value + by for name, value in weights(folder).items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    write_digests(folder)


def configure(folder: Path, **values: object) -> None:
    """Give a checkpoint other numbers in its btr section."""
    config = json.loads((folder / "config.json").read_text())
    config["btr"] |= values
    (folder / "config.json").write_text(json.dumps(config))
    write_digests(folder)


def test_the_mean_of_readers_is_a_reader(tmp_path, tokenizer, passages) -> None:
    parts = [tmp_path / name for name in "abc"]
    for folder, by in zip(parts, (0.0, 0.01, 0.05), strict=True):
        make_reader(folder, tokenizer, "btr", 2)
        shift(folder, by)
    configure(parts[0], abstention=1.5)
    assert main([str(tmp_path / "mean"), *map(str, parts)]) == 0
    mean, (a, b, c) = weights(tmp_path / "mean"), map(weights, parts)
    assert mean.keys() == a.keys()
    assert not any(torch.equal(a[name], b[name]) for name in a)
    for name, value in mean.items():
        wanted = (a[name].float() + b[name].float() + c[name].float()) / 3
        assert torch.equal(value, wanted.to(a[name].dtype))
    check_digests(tmp_path / "mean")
    reader = BertReader.from_pretrained(tmp_path / "mean")
    assert reader.config.abstention == 0.0  # fitted to another reader's answers
    assert reader.read("who?", passages).answers


def test_of_generative_readers_too(tmp_path, passages) -> None:
    tokenizer = t5_tokenizer()
    for name in "ab":
        make_t5(tmp_path / name, tokenizer, "plain", 0)
    configure(tmp_path / "b", calibration=[1.0, 0.5])
    average_checkpoints(tmp_path / "mean", [tmp_path / "b", tmp_path / "a"])
    reader = T5Reader.from_pretrained(tmp_path / "mean")
    assert reader.config.calibration is None
    assert reader.read("who?", passages) is not None


def test_what_has_no_mean(tmp_path, tokenizer, capsys) -> None:
    make_reader(tmp_path / "a", tokenizer, "btr", 2)
    make_reader(tmp_path / "b", tokenizer, "plain", 0)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").write_text("{}")
    write_digests(tmp_path / "c")
    for given, status, said in (
        (["a"], 2, "several"),
        (["a", "b"], 3, "another configuration than the first"),
        (["a", "c"], 3, "another tokenizer than the first"),
        (["a", "none"], 3, "none"),
    ):
        folders = [str(tmp_path / name) for name in given]
        assert main([str(tmp_path / "mean"), *folders]) == status
        assert said in one_line(capsys.readouterr().err)
        assert not (tmp_path / "mean").exists()
    assert main([str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "there already" in one_line(capsys.readouterr().err)
    with (tmp_path / "c" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(CorruptError):
        average_checkpoints(tmp_path / "mean", [tmp_path / "a", tmp_path / "c"])
