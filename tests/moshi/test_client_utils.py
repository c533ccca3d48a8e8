"""Terminal output with the names of `moshi.client_utils`."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("torch")

from slipstream.moshi.client_utils import Printer, RawPrinter, make_log


def test_raw_output_is_the_text_alone() -> None:
    out, err = io.StringIO(), io.StringIO()
    printer = RawPrinter(out, err)
    printer.print_header()
    for token in (" hello", " wor", "ld"):
        printer.print_token(token)
    printer.log("info", "done")
    assert out.getvalue() == " hello world"
    assert err.getvalue() == "Info: done\n"


def test_lines_fit_the_terminal() -> None:
    out = io.StringIO()
    printer = Printer(max_cols=10, stream=out, err_stream=io.StringIO())
    printer.print_header()
    for token in (" hello", " big", " wor", "ld"):
        printer.print_token(token)
    assert out.getvalue().splitlines() == ["-" * 10, " hello big", "world"]


def test_an_unknown_level_is_refused() -> None:
    assert "[Warning]" in make_log("warning", "x")
    with pytest.raises(ValueError, match="unknown level 'loud': expected info, warning, error"):
        make_log("loud", "x")
