"""Refuse words that plain technical English does not use, private notes, and files and packages that are too long.

    python tools/check_style.py                         # everything except the `pending` paths of pyproject.toml
    python tools/check_style.py src/slipstream/server   # these paths, pending or not

Reads Markdown without its code; of Python, the comments, docstrings, strings with spaces and names of tests; of TOML,
YAML, shell scripts, Makefile and Dockerfile, the comments. In tests other strings are data and are not checked.
`style: allow` in a line exempts it. The words are in `tools/style.toml`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PATHS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", ".github", "docs"]
PATHS += ["examples", "packages", "src", "tests", "benchmarks", "tools", "recipes", "configs", "deploy", ".ci"]
PATHS += ["Makefile", "mkdocs.yml", "pyproject.toml"]
HASH_SUFFIXES = {".toml", ".yml", ".yaml", ".sh", ".service"}
HASH_NAMES = {"Makefile", "Dockerfile", "run"}
"""Files whose comments begin with `#`."""
SKIPPED = {"__pycache__", "node_modules"}
ALLOW = "style: allow"
CODE = re.compile(r"``.+?``|`[^`]+`|https?://\S+|\]\([^)]*\)|(?m:^ +\*{0,2}\w+:(?= ))", re.DOTALL)
"""Quoted code, addresses, and the names of arguments in a docstring."""
MOST_LINES = 450
MOST_SHARE = 0.12
"""Of the lines of a source tree, in one of its packages: a larger one has more than one subject."""
PLACEHOLDER = re.compile(r"\{[^{}]*\}")


class Problem(NamedTuple):
    path: Path
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {' '.join(self.found.split())!r}: {self.instead}"


def words(file: Path = ROOT / "tools/style.toml") -> dict[re.Pattern[str], str]:
    """Return each pattern of the word list with what to write instead."""
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    return {
        re.compile(rf"(?<![\w/-])(?:{pattern.replace(' ', chr(92) + 's+')})(?![\w-])", re.IGNORECASE): instead
        for table in tables.values()
        for pattern, instead in table.items()
    }


def check(path: Path, patterns: dict[re.Pattern[str], str]) -> list[Problem]:
    """Return the problems of one file, in the order of its lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        pieces = python_prose(source, path)
    else:
        pieces = hash_prose(source) if _has_hashes(path) else markdown_prose(source)
    lines = source.splitlines()
    problems = []
    if path.suffix == ".py" and len(lines) > MOST_LINES:
        problems.append(
            Problem(path, MOST_LINES + 1, f"{len(lines)} lines", f"a file has at most {MOST_LINES}: split it")
        )
    for start, text in pieces:
        prose = CODE.sub(_blank, text)
        for pattern, instead in patterns.items():
            for match in pattern.finditer(prose):
                line = start + prose.count("\n", 0, match.start())
                if ALLOW not in lines[line - 1]:
                    problems.append(Problem(path, line, match.group(), instead))
    return sorted(problems)


def large_packages(source: Path) -> list[Problem]:
    """Return each package directly below a source tree that has more than its share of the tree's lines."""
    lines: dict[Path, int] = {}
    for file in source.rglob("*.py"):
        package = source / file.relative_to(source).parts[0]
        lines[package] = lines.get(package, 0) + len(file.read_text(encoding="utf-8").splitlines())
    most = MOST_SHARE * sum(lines.values())
    return [
        Problem(package, 1, f"{count} lines", f"a package has at most {MOST_SHARE:.0%} of {source.name}: split it")
        for package, count in sorted(lines.items())
        if package.is_dir() and count > most
    ]


def markdown_prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the text of a Markdown file without its code blocks, with the number of its first line."""
    kept, fence = [], ""
    for line in source.splitlines():
        opened = re.match(r"\s*(```+|~~~+)", line)
        if opened and (not fence or line.strip() == fence):
            fence = "" if fence else opened.group(1)
            line = ""
        indented = line.startswith("    ") and not re.match(r"\s+(\d+\.|[-*])\s", line)
        kept.append("" if fence or indented else line)
    yield 1, "\n".join(kept)


def hash_prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments after `#` of a file, line by line in their places."""
    comments = (re.search(r"(?:^|\s)#(.*)", line) for line in source.splitlines())
    yield 1, "\n".join(comment.group(1) if comment else "" for comment in comments)


def python_prose(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield comments, docstrings, strings and names of tests, each with the number of its first line."""
    tests = "tests" in path.parts
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # also of fields
            docstrings.add((node.lineno, node.col_offset))
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#: ")
            if comments and line == comments[-1][0] + comments[-1][1].count("\n") + 1:  # a phrase may span two lines
                comments[-1] = (comments[-1][0], f"{comments[-1][1]}\n{text}")
            else:
                comments.append((line, text))
        elif token.type == tokenize.STRING and (not tests or token.start in docstrings):
            if re.search(r"\s", token.string):  # without a space it is a name or a key
                yield line, PLACEHOLDER.sub(_blank, token.string)
        elif tokenize.tok_name[token.type] == "FSTRING_MIDDLE" and not tests:
            yield line, token.string
    yield from comments


def _has_hashes(path: Path) -> bool:
    return path.suffix in HASH_SUFFIXES or path.name in HASH_NAMES


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", "`", match.group())


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the Python and Markdown files of these paths, and those with comments after `#`."""
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        prose = (file for file in found if file.suffix in (".py", ".md") or (file.is_file() and _has_hashes(file)))
        yield from (file for file in prose if not SKIPPED & {*file.parts})


def main(arguments: list[str]) -> int:
    """Print the problems of the given paths, or of all but the pending ones. Returns the exit code."""
    patterns = words()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pending = [] if arguments else [ROOT / path for path in settings["tool"]["style"]["pending"]]
    paths = [Path(path).resolve() for path in arguments] or [ROOT / path for path in PATHS if (ROOT / path).exists()]
    problems = []
    for file in files(paths):
        if not any(file == path or path in file.parents for path in pending):
            problems += check(file, patterns)
    if not arguments:
        problems += large_packages(ROOT / "src/slipstream")
    for problem in problems:
        print(problem._replace(path=problem.path.relative_to(ROOT)))
    if problems:
        print(f"{len(problems)} problems; `style: allow` in a line exempts its words (CONTRIBUTING.md, Style)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
