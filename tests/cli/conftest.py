"""A tiny reader in three modes, a small corpus, and a store of it made by ``btr index``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import btr.answering
import btr.indexing
from btr.cli.main import main
from btr.retrieval.dense import Embedder
from tiny_readers import make_reader

CORPUS = {
    "rivers.txt": "The river rises in snow. It ends at a wide salt lake where birds rest.",
    "bridges.md": "# Bridges\n\nThe first bridge was built of stone by king Harald in 1172.\n",
    "queens.jsonl": '{"id": "q1", "title": "Ada", "text": "Ada was queen of the north."}\n'
    '{"id": "q2", "title": "Lake", "text": "The north lake is wide and the south lake is salt."}\n',
}
QUESTIONS = (
    '{"id": "1", "question": "Who was queen of the north?", "answers": ["Ada"],'
    ' "ctxs": [{"id": "q1", "title": "Ada", "text": "Ada was queen of the north."}]}\n'
    '{"id": "2", "question": "Which lake is wide?", "answers": ["north lake"],'
    ' "ctxs": [{"id": "q2", "title": "Lake",'
    ' "text": "The north lake is wide and the south lake is salt."}]}\n'
)


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The real one, loaded once."""
    return Embedder()


@pytest.fixture(scope="session", autouse=True)
def _one_embedder(embedder: Embedder) -> Iterator[None]:
    """Commands load the encoder anew, 90 MB each time; here they are given the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(btr.indexing, "Embedder", lambda: embedder)
        patch.setattr(btr.answering, "Embedder", lambda: embedder)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folder of a random reader in three modes."""
    folder = tmp_path_factory.mktemp("readers") / "tiny"
    for mode, split_layer in (("plain", 0), ("decomposed", 2), ("btr", 2)):
        make_reader(folder / mode, tokenizer, mode, split_layer)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, text in CORPUS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions with their passages, which are in the store."""
    file = tmp_path_factory.mktemp("questions") / "lakes.jsonl"
    file.write_text(QUESTIONS)
    return file


@pytest.fixture(scope="session")
def whole_store(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny: Path) -> Path:
    """A store, not to be changed."""
    store = tmp_path_factory.mktemp("stores") / "lakes.btr"
    assert main(["index", str(corpus), "-o", str(store), "--reader", str(tiny)]) == 0
    return store


@pytest.fixture
def store(tmp_path: Path, whole_store: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole_store, tmp_path / "lakes.btr"))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; its status, its stdout and its stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out, err

    return call
