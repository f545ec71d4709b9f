"""The README's commands run as pasted; commands of the documentation name options, files and extras that exist.

The README's run in a copy of the repository whose trainings have few iterations, in an environment whose pip, pytest,
ruff and mypy only write down how they are called (installing and testing is what is being done already).
"""

import contextlib
import importlib
import io
import json
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns, which

import pytest
from processes import launch

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COPIED = ("configs", "docs", "experiments", "jaxmgrit", "README.md", "pyproject.toml", "run")
WRITES_DOWN = '#!/bin/sh\necho "$(basename "$0") $*" >> "$CALLS"\n'


def commands(page):
    """The lines of a page's shell blocks, without comments, continued lines joined."""
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def modules():
    """(page, module, its words) of every `python -m module ...`."""
    for page in PAGES:
        for words in commands(page):
            if "-m" in words and "python" in words:
                at = words.index("-m")
                yield page.name, words[at + 1], words[at + 2 :]


CALLED = sorted({module for _, module, _ in modules() if module.startswith("experiments.")})


def help_of(module):
    """What `--help` prints, and `--help-all` where there is one."""
    printed = io.StringIO()
    for words in (["--help"], ["--help-all"]):
        if words == ["--help-all"] and "--help-all" not in printed.getvalue():
            break
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            command = importlib.import_module(module)
            # A command may be a package.
            (command if hasattr(command, "main") else importlib.import_module(f"{module}.__main__")).main(words)
    return printed.getvalue()


@pytest.mark.parametrize("module", CALLED)
def test_options_exist(module):
    text = help_of(module)
    if re.search(r"--key|--backend\.\*", text):  # it also takes the keys of a config
        text += help_of("experiments.train")
    for page, called, words in modules():
        if called == module:
            for word in words:
                if word.startswith("--"):
                    assert re.search(rf"{re.escape(word)}(?![\w.-])", text), f"{page}: {module} has no {word}"


def test_files_and_tests_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"(?<![\w/.$-])(?:configs|docs|tests|experiments|jaxmgrit|examples)/[\w./-]*\w", text):
            made = "NAME" in path or path.startswith("docs/_build")
            assert made or (ROOT / path).exists(), f"{page.name} names {path}, which there is not"


def test_run_has_the_commands_that_are_named():
    known = re.findall(r"^(\w+)\)$", (ROOT / "run").read_text(), re.MULTILINE)
    assert {"train", "test", "docs"} <= set(known)
    for page in PAGES:
        for words in commands(page):
            if words[:2] == ["sh", "run"]:
                assert words[2] in known, f"{page.name}: sh run {words[2]}"


def test_extras_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for named in re.findall(r"pip install[^\n]*?'\.\[([\w,]+)\]'", page.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(extras), f"{page.name}: {named}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """(folder with the repository's files, environment in which its commands do not install or test anything)."""
    folder = tmp_path_factory.mktemp("readme") / "jaxmgrit"
    folder.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            copytree(ROOT / name, folder / name, ignore=ignore_patterns("_build", "__pycache__"))
        else:
            copy2(ROOT / name, folder / name)
    for config in (folder / "configs").glob("*.yaml"):
        text = config.read_text()
        for key, value in {"iterations": 3, "warmup": 0, "train_per_class": 20, "validation_per_class": 20}.items():
            text = re.sub(rf"\b{key}: \d+", f"{key}: {value}", text)
        config.write_text(text + "\noutput: {pictures: false}\n")
    demo = folder / "experiments" / "demo.py"
    text = demo.read_text()
    for given, quick in (
        ("default=1024", "default=64"),
        ("RACE_SECONDS = 15.0", "RACE_SECONDS = 0.3"),
        ("CHUNK_SECONDS = 1.5", "CHUNK_SECONDS = 0.3"),
        ("MODELLED = (4, 8, 16, 32, 64)", "MODELLED = (4, 16)"),
    ):
        assert given in text
        text = text.replace(given, quick)
    demo.write_text(text)
    bin_ = folder / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("pip", "ruff", "mypy"):
        (bin_ / name).write_text(WRITES_DOWN)
        (bin_ / name).chmod(stat.S_IRWXU)
        for package in ("pip", "pytest"):
            stand_in = folder / ".stand_ins" / package
            stand_in.mkdir(parents=True, exist_ok=True)
            (stand_in / "__init__.py").write_text("")
            (stand_in / "__main__.py").write_text(
                f"import os, sys\nprint('{package}', *sys.argv[1:], file=open(os.environ['CALLS'], 'a'))\n"
            )
    (bin_ / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_ / "python").chmod(stat.S_IRWXU)
    (bin_ / "activate").write_text(f'PATH="{bin_}:$PATH"\n')
    env = {k: v for k, v in launch.environment().items() if k not in ("VIRTUAL_ENV", "VENV")}
    env |= {"CALLS": str(folder / "calls"), "PYTHONPATH": str(folder / ".stand_ins"), "PYTHON": sys.executable}
    env["PATH"] = f"{bin_}:{env['PATH']}"
    return folder, env


def assert_demonstrated(folder, printed):
    """The demo has timed, raced, counted and drawn, and what it prints is what it writes."""
    result = json.loads((folder / "demo.json").read_text())
    assert (folder / "demo.png").stat().st_size > 10_000
    for name, milliseconds in result["steps"].items():
        assert milliseconds > 0 and f"{name:22} {milliseconds:7.2f} ms" in printed
    for curve in result["race"].values():
        seconds = [point[0] for point in curve]
        assert seconds == sorted(seconds) and seconds[-1] >= 0.3
        assert all(0 <= accuracy <= 1 for _, accuracy in curve)
    cycles = list(result["cycles"].values())
    assert max(cycles) <= 6 and cycles[-1] <= cycles[0], "the cycles do not grow with the number of layers"
    assert "When it does not help" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", FENCE.findall(README.read_text(encoding="utf-8")), ids=lambda b: b.split("\n")[0][:30]
)
def test_the_readme_as_pasted(block, copy):
    folder, env = copy
    if "mpirun" in block and (which("mpirun") is None or not importlib.util.find_spec("mpi4jax")):
        pytest.skip("MPI is not installed")
    (folder / "calls").write_text("")
    ran = subprocess.run(
        ["bash", "-e", "-c", block], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    calls = (folder / "calls").read_text().splitlines()
    if block.startswith("sh run test"):
        assert [call.split()[0] for call in calls] == ["pip", "ruff", "ruff", "mypy", "pytest"]
    if "experiments.train" in block or block.startswith("sh run train"):
        assert list((folder / "runs").glob("*/summary.json"))
    if block.startswith("sh run demo"):
        (made,) = (folder / "runs").glob("demo-*")
        assert_demonstrated(made, ran.stdout)
