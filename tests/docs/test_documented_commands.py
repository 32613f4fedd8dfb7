"""Commands in the documentation and in scripts have the options that they are given."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from typer.main import get_command

from btr.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*/*.md")])
SCRIPTS = sorted([*ROOT.glob("training/*.sh"), *ROOT.glob("results/*.sh")])
COMMANDS = {
    name: {flag for parameter in command.params for flag in parameter.opts}
    | {flag for parameter in command.params for flag in parameter.secondary_opts}
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
}
FLAG = r"(?<![\w-])--[a-z][a-z-]*"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(text: str) -> list[str]:
    """Lines of blocks and what stands between backquotes, each without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s#.*", "", line) for line in lines] + re.findall(r"`([^`]+)`", rest)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_pages_have_their_options(page: Path) -> None:
    for line in code(page.read_text(encoding="utf-8")):
        for command, rest in re.findall(r"(?<![\w./-])btr ([a-z]+)([^|;&]*)", line):
            if command in COMMANDS:
                assert set(re.findall(FLAG, rest)) <= COMMANDS[command] | {"--help"}, line


def test_pages_have_commands() -> None:
    found = {
        command
        for page in PAGES
        for line in code(page.read_text(encoding="utf-8"))
        for command in re.findall(r"^btr ([a-z]+)", line)
    }
    assert found <= COMMANDS.keys()
    assert {"index", "ask", "compress", "train", "eval", "sweep", "pretrain"} <= found


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_options_of_scripts_exist(script: Path) -> None:
    """Each is one of a command or a module that the script runs."""
    text = re.sub(r"^\s*#.*", "", script.read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?<![\w./-])btr ([a-z]+)", text)
    assert named
    known = set().union(*(COMMANDS[command] for command in named))
    for module in re.findall(r"python -m (btr[\w.]+)", text):
        found = importlib.util.find_spec(module)
        assert found is not None, module
        known |= set(re.findall(r'"(--[a-z-]+)"', Path(str(found.origin)).read_text()))
    assert set(re.findall(FLAG, text)) <= known
