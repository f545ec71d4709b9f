"""YAML: decimal numbers as they are written, and hostile texts answered by name in bounded time and memory."""

import os
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import config
from experiments.config import yaml_values
from experiments.errors import ConfigError
from experiments.training import build

CONFIGS = [file.read_text() for file in sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))]
PLAIN = "problem: {name: level_sets}\n"
SECONDS, MEMORY = 10.0, 2**27
CASES = int(os.environ.get("JAXMGRIT_CASES", "100"))
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("-007", -7),
        ("+12", 12),
        ("1_000", 1000),
        ("010.5", 10.5),
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0x10", "0x10"),
        ("0b11", "0b11"),
        ("0o17", "0o17"),
        ("1__0", "1__0"),
        ("\u0661\u0662", "\u0661\u0662"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("off", False),
        ("~", None),
        ("'010'", "010"),
        ("!!int 010", 10),
        ("!!float 3", 3.0),
        ("!!bool no", False),
        ("!!str 010", "010"),
    ],
)
def test_values_are_decimal_as_written_or_texts(text, value):
    own = yaml_values.parse_word(text)
    assert own == value
    assert type(own) is type(value)


@given(number=st.integers(-(10**20), 10**20), zeros=st.integers(0, 5), places=st.integers(0, 5))
def test_every_decimal_number_is_the_one_that_python_reads(number, zeros, places):
    sign, digits = "-" * (number < 0), "0" * zeros + str(abs(number))
    assert yaml_values.parse_word(sign + digits) == number
    point = max(1, len(digits) - places)
    real = f"{sign}{digits[:point]}.{digits[point:]}"
    assert yaml_values.parse_word(real) == float(real)


WORDS = [
    *["08", "-08", "1e3", "12e03", "1_0", "1:30", ".5", "+5", "1.", "0x1F", "0o17", "-.inf", ".NaN", "yes", "~"],
    *["null", "=", "<<", "2024-01-01", "", " ", "a: b", "#a", "a\nb", "'", '"', "\x7f", "\u2028", "\ufeff", "&a"],
]


@given(word=st.sampled_from(WORDS) | st.from_regex(r"[-+.0-9eE_:xinfa]{1,8}") | st.text(max_size=6))
def test_a_text_that_is_written_is_read_again_as_that_text(word):
    values = {"name": word, "list": [word, 1, 0.5, 1e-7, 1e30, True, None]}
    written = yaml_values.text(values)
    assert yaml_values.parse(written) == values
    assert yaml.safe_load(written) == values  # and by everybody else


@pytest.mark.parametrize("name", ["08", "1e3", "12e03", "-x", "--x", "a b", "a\nb", "\u00e9"])
def test_a_run_whose_folder_has_an_odd_name_can_be_read_again(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(PLAIN)
    given = config.read(["c.yaml", f"--output.folder={name}"], "experiments.train")
    (tmp_path / name).mkdir()
    config.write(given, tmp_path / name / "config.yaml")
    assert config.reader.read_run([f"--resume={name}"], "experiments.train") == (given, Path(name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!int 0x10", "'0x10' is no decimal int"),
        ("!!int 1:30", "'1:30' is no decimal int"),
        ("!!bool maybe", "'maybe' is no decimal bool"),
        ("!!timestamp never", "could not determine a constructor"),
        ("!!set {a}", "could not determine a constructor"),
        ("!!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("&a [*a]", "more than 10000 values"),
        ("&a {<<: *a}", "more than 10000 values"),
        ("? [a]\n: 1", "unhashable key"),
        ("9" * 5000, "Exceeds the limit"),
        ("[" * 60_000, "recursion"),
        ("? " * 30_000, "recursion"),
        ("- a\n" * 11_000, "more than 10000 values"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n"
         + "".join(f"{new}: &{new} [{', '.join(9 * ['*' + chr(ord(new) - 1)])}]\n" for new in "bcdefghi"),
         "more than 10000 values, those of aliases counted"),
    ],
)  # fmt: skip
def test_hostile_texts_are_refused_soon(text, message):
    start = time.process_time()
    with pytest.raises((yaml.YAMLError, ValueError, RecursionError), match=message):
        yaml_values.parse(text)
    assert time.process_time() - start < SECONDS


def test_what_an_alias_stands_for_is_not_shared(tmp_path):
    file = tmp_path / "alias.yaml"
    file.write_text(PLAIN + "solver: &own {coarsening_factor: 8}\nadjoint: *own\n")
    read = config.read([str(file), "--adjoint.coarsening-factor", "2"], "experiments.train")
    assert (read.solver.coarsening_factor, read.adjoint.coarsening_factor) == (8, 2)


def test_files_that_never_end_are_refused_and_a_shells_pipe_is_read(tmp_path):
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    (tmp_path / "long.yaml").write_text(PLAIN + "#" * 2**16)
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, message in (
        ("endless", "cannot be read: it is a device"),
        ("long", "cannot be read: it is larger than the 65536 bytes"),
        ("pipe", "the file is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.read([str(tmp_path / f"{name}.yaml")], "experiments.train")
    reader, writer = os.pipe()
    os.write(writer, PLAIN.encode())
    os.close(writer)
    assert config.read([f"/dev/fd/{reader}"], "experiments.train").problem.name == "level_sets"
    os.close(reader)


PIECES = st.sampled_from(
    [*"&*!|>%@`'\"[]{}:,#?-\n\t 0~", "&a ", "*a", "<<: *a", "!!int ", "!!set ", "---\n", "...\n", ": ", "- ", "\n  "]
    + ["010", "1:30", "null", ".nan", "1e400", "\x00", "\u2028", "\ufeff"]
    + ["seed: 010\n", "solver: &a {cycles: 1}\n", "adjoint: *a\n", "network: ["]
)
LINES = st.sampled_from([line for text in CONFIGS for line in text.splitlines(keepends=True)])


@st.composite
def texts(draw):
    """A shipped config in which some places were overwritten, cut out, repeated or replaced by other lines."""
    text = draw(st.sampled_from(CONFIGS))
    for _ in range(draw(st.integers(1, 5))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 40))
        new = draw(PIECES | LINES | st.text(max_size=5) | st.just(text[at : at + length] * 2) | st.just(""))
        text = text[:at] + new + text[at + draw(st.sampled_from([0, len(new), length])) :]
    return text


def accepted_or_refused(file, text):
    file.write_text(text, encoding="utf-8")
    tracemalloc.start()
    start = time.monotonic()
    try:
        read = config.read([str(file)], "experiments.train")
        if read.backend.kind != "mpi":
            build.trainer(read)
    except ConfigError as error:
        assert "Traceback" not in str(error)
        assert all(len(line) < 2000 for line in str(error).splitlines())
    else:
        config.write(read, file)
        assert config.read([str(file)], "experiments.train") == read
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    assert time.monotonic() - start < SECONDS


@settings(max_examples=25, **SETTINGS)
@given(text=texts())
def test_damaged_configs_are_accepted_or_refused(tmp_path_factory, text):
    accepted_or_refused(tmp_path_factory.getbasetemp() / "damaged.yaml", text)


@pytest.mark.slow
@settings(max_examples=CASES, **SETTINGS)
@given(text=texts())
def test_many_damaged_configs_are_accepted_or_refused(tmp_path_factory, text):
    accepted_or_refused(tmp_path_factory.getbasetemp() / "damaged.yaml", text)
