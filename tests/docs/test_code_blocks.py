"""The code blocks of README and the pages: Python runs, commands exist with their options, TOML and JSON parse."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.server.harness import Running, serving
from typer.core import TyperGroup
from typer.exceptions import TyperException

import slipstream
import slipstream.audio
import slipstream.client
from slipstream.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[object]:
    """The blocks in these languages, each with the page and line as its name."""
    found: list[object] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[2] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[3], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(accept_any=True) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the blocks name."""
    root = tmp_path_factory.mktemp("docs")
    (root / "examples").mkdir()
    for name in ("talk.mp3", "a.mp3", "b.mp3", "examples/sample.opus"):
        shutil.copy(ROOT / "examples" / "sample.opus", root / name)
    return root


@pytest.fixture(scope="module")
def tiny() -> Iterator[slipstream.Transcriber]:
    with slipstream.load("tiny", slots=4) as transcriber:
        yield transcriber


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(
    code: str, folder: Path, server: Running, tiny: slipstream.Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a block on the sample, with the built-in model in place of every model, and a server in place of 8080."""
    if "from openai" in code:
        pytest.importorskip("openai", reason="needs the extra clients-test")
    if "slipstream.ray" in code or "sessions=True" in code:
        pytest.skip("needs a Ray cluster: `make ray` tests these calls")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(slipstream, "load", lambda *arguments, **options: tiny, raising=False)
    monkeypatch.setattr(slipstream, "load_runner", lambda *arguments, **options: None, raising=False)
    monkeypatch.setattr(slipstream.Transcriber, "close", lambda self: None)
    monkeypatch.setattr(slipstream.audio, "microphone", lambda: slipstream.audio.decode("talk.mp3"))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code.replace("http://127.0.0.1:8080", server.http), "block", "exec"), names)
    for client in names.values():
        if type(client).__name__ == "OpenAI":
            client.close()  # a script ends here; in a cycle, its sockets may be collected before it closes them


def commands(block: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell block."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>()"):
                if words:
                    yield [*words, "pipe"] if word == "<(" else words
                words = []
            else:
                words.append(word)


def problem(words: list[str]) -> str:
    """What is wrong with a command of this project; empty for other commands."""
    if "slipstream" in words[:1] or words[1:3] == ["-m", "slipstream"]:
        return _cli_problem(words[1:] if words[0] == "slipstream" else words[3:])
    if words[0] == "torchrun" and "slipstream" in words:
        return _cli_problem(words[words.index("slipstream") + 1 :])
    if words[0] == "python" and words[1] == "-m" and words[2].startswith("benchmarks."):
        path = ROOT / words[2].replace(".", "/")
        return "" if path.with_suffix(".py").exists() or path.is_dir() else f"no module {words[2]}"
    if words[0] == "python" and words[1].endswith(".py"):
        return "" if (ROOT / words[1]).exists() else f"no file {words[1]}"
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "" if all(word in targets or "=" in word for word in words[1:]) else f"no target in {words}"
    if words[:2] == ["pip", "install"]:
        pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras = re.findall(r"\.\[([\w,-]+)\]", " ".join(words))
        missing = [
            name for extra in extras for name in extra.split(",") if not re.search(rf"^{name} = \[", pyproject, re.M)
        ]
        return f"no extra {missing}" if missing else ""
    return ""


def _cli_problem(words: list[str]) -> str:
    """Parse a command line as the program does, without running it."""
    command = typer.main.get_command(app)
    context = typer.Context(command)
    while isinstance(command, TyperGroup):
        if not words or words[0].startswith("-"):
            return ""
        name, words = words[0], words[1:]
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
        context = typer.Context(command, parent=context, info_name=name)
    try:
        command.make_context(context.info_name, list(words), parent=context.parent)
    except typer.Exit:
        return ""
    except TyperException as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_and_options_exist(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [(words, problem(words)) for words in commands(block) if problem(words)] == []


@pytest.mark.parametrize(
    "line",
    [
        "slipstream transcribe --no-such-option a.mp3",
        "slipstream no-such-command",
        "true && slipstream convert a",
        "torchrun -m slipstream train no-such-command x",
        "python -m benchmarks.no_such_module",
        "python benchmarks/no_such_file.py",
        "make no-such-target",
        'pip install ".[no-such-extra]"',
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    assert any(problem(words) for words in commands(line))


@pytest.mark.parametrize("block", blocks("json"))
def test_json_blocks_parse(block: str) -> None:
    assert json.loads(block)


def test_no_block_is_without_a_language() -> None:
    """Blocks are fenced and name their language, so that this module checks them."""
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), page
