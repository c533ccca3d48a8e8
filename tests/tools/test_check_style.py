"""The style check: what it reads, what it refuses, and what it leaves alone."""

from pathlib import Path

import pytest
from tools.check_style import check, large_packages, main, words


def found(tmp_path: Path, name: str, text: str) -> list[tuple[int, str]]:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [(problem.line, problem.found) for problem in check(path, words())]


@pytest.mark.parametrize(
    "line",
    [
        "The state starts afresh.",
        "The model Hears a word.",
        "recordings that were told by another model",
        "it is stopped at\nonce",
        "which are not\nto be had",
        "Described in issue 7.",
        "see /home/me/notes.md",
        "see ../notes.md",
        "an odd behavior",
    ],
)
def test_refuses_banned_words_spelling_and_private_notes(tmp_path: Path, line: str) -> None:
    assert len(found(tmp_path, "page.md", line)) == 1


@pytest.mark.parametrize(
    "line",
    ["roommates retell a shearing story", "`told`", "[a link](told.md)", "    told\n", "```\ntold\n```", "an issue"],
)
def test_leaves_other_words_code_and_links_alone(tmp_path: Path, line: str) -> None:
    assert found(tmp_path, "page.md", line) == []


def test_a_fence_of_four_backticks_may_hold_one_of_three(tmp_path: Path) -> None:
    assert found(tmp_path, "page.md", "````\n```\ntold\n```\n````\ntold") == [(6, "told")]


@pytest.mark.parametrize("name", ["run.toml", "Makefile", "values.yaml", "make.sh"])
def test_reads_the_comments_of_other_files(tmp_path: Path, name: str) -> None:
    text = "# The state starts afresh.\ntold = 1 # it is told\ncolor = '#told'\n"
    assert found(tmp_path, name, text) == [(1, "afresh"), (2, "told")]


MODULE = '''"""Tell what
this told."""  # a hint to whom

room = {"told": 1, f"he said {room}": 2}


def test_told_apart(said):
    """Say nothing but
    this."""
    raise ValueError("it " "heard noise")
'''


def test_reads_comments_docstrings_and_strings_but_no_names(tmp_path: Path) -> None:
    problems = found(tmp_path, "src/module.py", MODULE)
    assert problems == [
        (1, "Tell"), (2, "told"), (2, "whom"), (4, "said"), (7, "told"), (8, "Say"), (8, "nothing but"), (10, "heard"),
    ]  # fmt: skip


def test_strings_in_tests_are_data(tmp_path: Path) -> None:
    problems = found(tmp_path, "tests/module.py", MODULE)
    assert problems == [(1, "Tell"), (2, "told"), (2, "whom"), (7, "told"), (8, "Say"), (8, "nothing but")]


def test_a_phrase_is_found_across_two_lines_of_a_comment(tmp_path: Path) -> None:
    assert found(tmp_path, "module.py", "# so\n# many\n") == [(1, "so\nmany")]


def test_a_line_can_be_exempt(tmp_path: Path) -> None:
    text = "told <!-- style: allow -->\ntold\n"
    assert found(tmp_path, "page.md", text) == [(2, "told")]
    assert found(tmp_path, "module.py", "# told (style: allow)\n") == []


def test_the_repository_is_clean_except_for_its_pending_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out


def test_refuses_a_python_file_that_is_too_long(tmp_path: Path) -> None:
    assert found(tmp_path, "most.py", "x = 1\n" * 450) == []
    assert found(tmp_path, "more.py", "x = 1\n" * 451) == [(451, "451 lines")]


def test_refuses_a_package_with_more_than_its_share_of_the_lines(tmp_path: Path) -> None:
    for name, count in {"small/a.py": 88, "large/b.py": 7, "large/deep/c.py": 6, "module.py": 899}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * count, encoding="utf-8")
    assert large_packages(tmp_path) == []  # 13 of 1000 lines
    (tmp_path / "large/deep/d.py").write_text("x = 1\n" * 200, encoding="utf-8")
    assert [(problem.path.name, problem.found) for problem in large_packages(tmp_path)] == [("large", "213 lines")]
