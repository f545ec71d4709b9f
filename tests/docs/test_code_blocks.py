"""Every Python block of the README and the documentation runs as pasted, and prints what the page says it prints.

Blocks of a page are run in order, in one namespace, with JAX's own defaults (float32, promotion allowed), as a reader
would. A block that is followed by a ```text block must print exactly that.
"""

import contextlib
import io
import itertools
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page):
    """(line of the first statement, code, expected output or None) of a page's Python blocks."""
    text = page.read_text(encoding="utf-8")
    for fence, after in itertools.pairwise([*FENCE.finditer(text), None]):
        if fence[1] != "python":
            continue
        shown = after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip()
        yield text[: fence.start(2)].count("\n"), fence[2], after[2] if shown else None


WITH_CODE = [page for page in PAGES if any(blocks(page))]


@contextlib.contextmanager
def as_a_reader():
    """JAX as it comes, whatever the tests of the method have set."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for line, code, expected in blocks(page):
        printed = io.StringIO()
        with as_a_reader(), contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(page), "exec"), names)
        if expected is not None:
            assert printed.getvalue() == expected, f"{page.relative_to(ROOT)}, the block at line {line + 1}"


def test_there_are_blocks_to_run():
    assert sum(len(list(blocks(page))) for page in PAGES) >= 20
