"""Every bad input that can reach the command line: one line, and its exit status.

The groups are those of a fault model: B corruption, E wrong pairs and versions, and the command
line itself (D and C where a command is what meets the fault); F is in ``test_bad_sources.py``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from btr.files import FileLock
from btr.readers.digests import DIGESTS, write_digests
from btr.store.sealed import seal, unseal
from cli_lines import one_line
from tiny_readers import make_reader

Run = Callable[..., tuple[int, str, str]]


# -- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["indx"], "error[usage] No such command 'indx'; did you mean 'index'? see btr --help"),
        (["qqq"], "error[usage] No such command 'qqq'; see btr --help"),
        (["--jsom"], "error[usage] No such option: --jsom; see btr --help"),
        (
            ["index", "a", "--reder", "x"],
            "error[usage] No such option: --reder; did you mean --reader? see btr index --help",
        ),
        (
            ["ask", "s", "q", "--passage", "2"],
            "error[usage] No such option: --passage; did you mean --passages? see btr ask --help",
        ),
        (["index", "x"], "no place for the store; give -o, or --dry-run"),
        (["ask", "s"], "Missing argument '"),
        (["ask", "s", "q", "r"], "Got unexpected extra argument"),
        (["ask", "s", "q", "--mode", "btrr"], "'btrr' is not one of 'plain', 'decomposed', 'btr'"),
        (["ask", "s", "q", "--dtype", "fp16"], "'fp16' is not one of 'bf16', 'fp32'"),
        (["ask", "s", "q", "--passages", "0"], "Invalid value for '--passages'"),
        (["ask", "s", "q", "--passages", "1000000000"], "Invalid value for '--passages'"),
        (["ask", "s", "q", "--passages", "many"], "Invalid value for '--passages'"),
        (["ask", "s", " "], "the question is empty"),
        (["index", "x", "-o", "y", "--max-rejects", "-1"], "Invalid value for '--max-rejects'"),
        (["info", "s", "--json", "no/such/folder/x.json"], "the folder no/such/folder does not"),
        (["info", "s", "--json", "."], ". is a folder"),
        (["eval", "--data", "x", "--retrieve"], "need a store; add --store"),
        (["eval", "--data", "x", "--retrieve", "--retrieved", "y", "--store", "s"], "exclude"),
        (["bench", "--data", "x", "--dtype", "fp16"], "expected bf16 or fp32, found 'fp16'"),
        (["info", "nowhere"], "error[usage] no store here: nowhere"),
        (["ask", "nowhere", "why?"], "error[usage] no store here: nowhere"),
        (["verify", "nowhere"], "error[usage] no store here: nowhere"),
        (["verify", "s", "--debgu"], "No such option: --debgu"),
    ],
)
def test_usage(run: Run, words: list[str], text: str) -> None:
    status, _, err = run(*words)
    assert status == 2
    assert text in one_line(err)


def test_a_folder_that_is_no_store(run: Run, tmp_path: Path) -> None:
    status, _, err = run("info", tmp_path)
    assert status == 2
    assert "this folder is not a store" in one_line(err)


def test_errors_are_json_too(run: Run, tmp_path: Path) -> None:
    status, out, err = run("info", "nowhere", "--json", "-")
    error = json.loads(out)["error"]
    assert (status, error["exit_status"], error["code"]) == (2, 2, "usage")
    assert error["what"] == "no store here"
    assert one_line(err).startswith("error[usage] no store here")
    status, _, _ = run("info", "--nonsense", f"--json={tmp_path / 'e.json'}")
    error = json.loads((tmp_path / "e.json").read_text())["error"]
    assert (status, error["what"]) == (2, "No such option: --nonsense")


def test_debug_shows_the_traceback_and_the_line(run: Run) -> None:
    for words in (["--debug", "info", "nowhere"], ["info", "nowhere", "--debug"]):
        status, _, err = run(*words)
        assert status == 2
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("error[usage] no store here")


def test_a_word_after_two_dashes_is_no_flag(run: Run) -> None:
    status, _, err = run("info", "--", "--debug")
    assert status == 2
    assert "no store here: --debug" in one_line(err)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (MemoryError(), 7, "error[resource] out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 7, "out of memory"),
        (OSError(28, "No space left on device", "/x/y"), 7, "the disk is full: /x/y"),
        (PermissionError(13, "Permission denied", "/x"), 2, "no permission: /x"),
        (BrokenPipeError(), 141, None),
        (RuntimeError("x\ny"), 1, "error[unexpected] RuntimeError: rerun with --debug"),
        (FileNotFoundError(2, "gone", "/x"), 1, "error[unexpected] FileNotFoundError: rerun"),
    ],
)
def test_any_exception_is_one_line(
    run: Run, whole_store: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int,
    text: str | None,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("btr.store.sizes.store_sizes", fail)
    if text is None:
        # The real one closes stderr; only its status is looked at here.
        monkeypatch.setattr("sys.stderr", open(os.devnull, "w"))  # noqa: SIM115
    found, _, err = run("info", whole_store)
    assert found == status
    if text:
        assert text in one_line(err)


# -- D: resources, as far as a command meets them ----------------------------------------------


def test_a_full_disk_under_the_report(run: Run, whole_store: Path) -> None:
    status, _, err = run("info", whole_store, "--json", "/dev/full")
    assert status == 7
    assert "the disk is full: /dev/full" in one_line(err)


def test_index_where_nothing_can_be_made(
    run: Run, corpus: Path, tiny: Path, tmp_path: Path
) -> None:
    status, _, err = run("index", corpus, "-o", tmp_path / "no" / "s", "--reader", tiny)
    assert status == 2
    assert "the folder for the store does not exist" in one_line(err)


# -- C: one writer -----------------------------------------------------------------------------


def test_a_locked_store(run: Run, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "s.lock")
    try:
        status, _, err = run("index", corpus, "-o", tmp_path / "s", "--reader", tiny)
    finally:
        lock.release()
    assert status == 6
    assert f"found pid {os.getpid()} on " in one_line(err)


def test_a_target_that_exists(run: Run, corpus: Path, tiny: Path, store: Path) -> None:
    status, _, err = run("index", corpus, "-o", store, "--reader", tiny)
    assert status == 2
    assert f"the target exists: {store}" in one_line(err)


# -- B: corruption -----------------------------------------------------------------------------


def reseal(store: Path, change: Callable[[dict], object]) -> None:
    values = unseal((store / "manifest.json").read_bytes())
    change(values)
    (store / "manifest.json").write_bytes(seal(values))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def shard(store: Path) -> Path:
    return store / "shards" / "00000000.btr"


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: shard(s).write_bytes(shard(s).read_bytes()[:-1]),
        lambda s: shard(s).write_bytes(shard(s).read_bytes() + b"\0"),
        lambda s: shard(s).write_bytes(b""),
        lambda s: shard(s).unlink(),
        lambda s: (s / "ids.sqlite").unlink(),
        lambda s: flip(s / "manifest.json", 100),
        lambda s: (s / "manifest.json").write_bytes(b""),
        lambda s: (s / "manifest.json").write_bytes(b"{" * 100_000),
        lambda s: reseal(s, lambda v: v.update(passages=10**99)),
        lambda s: reseal(s, lambda v: v["files"][0].__setitem__(0, "../../etc/passwd")),
        lambda s: reseal(s, lambda v: v["spec"].update(dim=-8)),
        lambda s: [p.unlink() for p in (s / "retrieval" / "lexical").iterdir()],
    ],
    ids=["short", "long", "empty", "gone", "no ids", "manifest flip", "manifest empty",
         "manifest garbage", "huge count", "name outside", "negative dim", "no index"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["info", "ask", "verify"])
def test_damage_is_seen_on_opening(
    run: Run, store: Path, damage: Callable[[Path], object], command: str
) -> None:
    damage(store)
    status, _, err = run(command, store, *(["lake?"] if command == "ask" else []))
    assert status == 4
    assert all(line.startswith("error[corrupt] ") for line in err.splitlines()[:1])
    assert str(store) in err
    assert "Traceback" not in err


def test_a_flipped_bit_under_a_question(run: Run, store: Path) -> None:
    flip(shard(store), shard(store).stat().st_size - 20)  # in the last state record
    status, _, err = run("ask", store, "lake?")
    assert status == 4
    line = one_line(err)
    assert line.startswith("error[corrupt] ")
    assert str(shard(store)) in line


def test_verify_lists_all_damage(run: Run, store: Path) -> None:
    flip(shard(store), 300)
    flip(shard(store), shard(store).stat().st_size - 20)
    flip(store / "ids.sqlite", 4000)
    (store / "extra").write_text("x")
    status, out, err = run("verify", store, "--json", "-")
    report = json.loads(out)
    assert (status, report["ok"]) == (4, False)
    listed = err.splitlines()[:-1]
    assert len(listed) == len(report["damage"]) >= 4
    for name in ("00000000.btr", "ids.sqlite", "extra"):
        assert any(name in line for line in listed)
    assert (
        err.splitlines()[-1]
        == f"{store}: {len(listed)} faults; btr repair, or build the store again"
    )


def test_another_stores_shard(run: Run, store: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "docs"
    other.mkdir()
    (other / "a.txt").write_text("Ada was king of the south.")
    run("index", other, "-o", tmp_path / "other", "--reader", tiny)
    shutil.copy(shard(tmp_path / "other"), shard(store))
    status, _, err = run("ask", store, "lake?")
    assert status == 4
    assert "wrong file size" in one_line(err)


# -- B8 and E: checkpoints ---------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path: Path, tiny: Path) -> Path:
    """A copy of the reader to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "btr" / "config.json"
    config = json.loads(file.read_text())
    section = config["btr"]
    for name, value in changes.items():
        target = section if name in section or name == "pasage_budget" else config
        target[name] = value
    file.write_text(json.dumps(config))
    write_digests(folder / "btr")


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "btr" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    write_digests(folder / "btr")


HEAD = "qa_outputs.bias"


@pytest.mark.parametrize(
    ("damage", "status", "text"),
    [
        (lambda r: flip(r / "btr" / "model.safetensors", -5), 4, "the checkpoint is damaged"),
        (lambda r: flip(r / "btr" / "tokenizer.json", 500), 4, "the checkpoint is damaged"),
        (lambda r: flip(r / "btr" / "config.json", 20), 4, "the checkpoint is damaged"),
        (lambda r: flip(r / "btr" / DIGESTS, 30), 4, ""),
        (lambda r: (r / "btr" / "model.safetensors").unlink(), 4, "not a readable file"),
        (lambda r: change_config(r, model_type="gpt2"), 5, "expected model_type bert or t5"),
        (lambda r: change_config(r, pasage_budget=3), 5, "did you mean passage_budget?"),
        (lambda r: change_config(r, mode="bits"), 5, "unknown mode in the btr section"),
        (lambda r: change_config(r, family="t5"), 5, "unknown family in the btr section"),
        (lambda r: change_config(r, split_layer=99), 4, "impossible split_layer"),
        (lambda r: change_config(r, split_layer="2"), 4, "impossible split_layer"),
        (lambda r: change_config(r, query_budget=200), 4, "exceed the model's positions"),
        (lambda r: change_weights(r, lambda t: t[HEAD].fill(float("nan"))), 4,
         f"tensor holds NaN or infinity: model.{HEAD}"),
        (lambda r: change_weights(r, lambda t: t.pop(HEAD)), 4, f"tensor is missing: model.{HEAD}"),
        (lambda r: change_weights(r, lambda t: t.update(x=t[HEAD])), 4, "tensor does not belong"),
        (lambda r: change_weights(r, lambda t: t.update({HEAD: t[HEAD][:1]})), 4, "wrong shape"),
        (lambda r: shutil.rmtree(r / "btr"), 3, "has no btr checkpoint"),
        (lambda r: [shutil.rmtree(r / m) for m in ("plain", "decomposed", "btr")], 3, "no btr"),
    ],
)  # fmt: skip
def test_bad_checkpoints(
    run: Run,
    reader: Path,
    questions: Path,
    damage: Callable[[Path], object],
    status: int,
    text: str,
) -> None:
    damage(reader)
    found, _, err = run("eval", "--reader", reader, "--data", questions)
    assert (found, text in one_line(err)) == (status, True), err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("minilmm", "no such reader: 'minilmm'; expected one of minilm, t5-mini, a folder, or"),
        ("/no/such/folder", "no such reader: '/no/such/folder'"),
        ("nobody/such-model", "cannot be fetched from the Hugging Face Hub: nobody/such-model"),
    ],
)
def test_readers_that_are_not_there(run: Run, questions: Path, name: str, text: str) -> None:
    status, _, err = run("eval", "--reader", name, "--data", questions)
    assert status == 3
    assert text in one_line(err)


def test_another_reader_under_the_same_name(
    run: Run, corpus: Path, reader: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase,
    questions: Path,
) -> None:  # fmt: skip
    store = tmp_path / "s"
    run("index", corpus, "-o", store, "--reader", reader)
    make_reader(reader / "btr", tokenizer, "btr", 2, seed=1)
    for words in (("ask", store, "lake?"),
                  ("eval", "--reader", reader, "--data", questions, "--store", store)):  # fmt: skip
        status, _, err = run(*words)
        assert status == 5
        assert "made by another reader: lower_weights differs" in one_line(err)


def test_a_store_of_a_newer_btr(run: Run, store: Path) -> None:
    reseal(store, lambda v: v.update(version=2))
    for words in (("info", store), ("ask", store, "lake?"), ("verify", store)):
        status, _, err = run(*words)
        assert status == 5
        assert "written by a newer btr" in one_line(err)
        assert "found 2; install a newer btr" in err


def test_vectors_of_another_encoder(run: Run, corpus: Path, tiny: Path, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    import btr.answering

    class Other:
        dim, fingerprint = 384, {"dense_weights": "another"}

    run("index", corpus, "-o", tmp_path / "s", "--reader", tiny)
    monkeypatch.setattr(btr.answering, "Embedder", Other)
    status, _, err = run("ask", tmp_path / "s", "lake?")
    assert status == 5
    assert "made by another sentence encoder: dense_weights differs" in one_line(err)


def test_resuming_with_other_sources(run: Run, tiny: Path, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "s.building").mkdir()
    run("index", corpus, "-o", tmp_path / "s", "--reader", tiny)
    status, _, err = run("index", corpus, "-o", tmp_path / "s", "--reader", tiny)
    assert status == 2
    assert "an unfinished build is here" in one_line(err)
