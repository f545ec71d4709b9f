"""The config: what is read is what was written, and every error names key, value, expectation and remedy."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments import config
from experiments.config import command_line
from experiments.config import describe as keys
from experiments.config import hierarchies as checks
from experiments.config.schema import Config
from experiments.errors import ConfigError

ROOT = Path(__file__).parents[3]
PREDICT = "--training.schedule predict_then_sweep"
WIDE = "--network.layout width_first"
PUBLISHED = "--optimizer.name published"
PLAIN = "problem: {name: level_sets}\n"


def read(tmp_path, *words, text=PLAIN):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return config.read([str(file), *words], "experiments.train")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_are_valid_and_survive_being_written(file, tmp_path):
    shipped = config.read([str(file)], "experiments.train")
    config.write(shipped, tmp_path / "resolved.yaml")
    assert config.read([str(tmp_path / "resolved.yaml")], "experiments.train") == shipped


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_hierarchies_are_not_exact_by_finite_termination(file):
    shipped = config.read([str(file)], "experiments.train")
    assert shipped.training.method == "one_shot"
    branches = shipped.network.layers * {"mlp": 1, "transformer": 2}.get(shipped.network.kind, 0)
    if branches:  # the usual scaling of pre-norm networks: 1/sqrt(number of branches)
        assert shipped.network.final_time / shipped.network.layers == pytest.approx(branches**-0.5, rel=1e-4)
    else:
        assert shipped.network.final_time == (20.0 if shipped.problem.name == "indian_pines" else 5.0)
    for section in ("solver", "adjoint"):
        solver, (_, intervals, *_) = getattr(shipped, section), checks.grid_sizes(shipped, section)
        assert solver.coarsening_factor**2 <= shipped.network.layers
        assert solver.cycles <= 2
        assert intervals > 2 * solver.cycles * (1 + solver.cf_relaxations[0])


def test_command_line_overrides_the_file_with_dashes_or_underscores(tmp_path):
    text = PLAIN + "seed: 3\nnetwork: {layers: 96}\noptimizer: {learning_rate: 1e-3}\n"
    read_back = read(tmp_path, "--network.final-time", "2", "--problem.train_per_class=7", "--seed", "4", text=text)
    assert (read_back.seed, read_back.network.layers, read_back.network.final_time) == (4, 96, 2.0)
    assert (read_back.problem.train_per_class, read_back.optimizer.learning_rate) == (7, 1e-3)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--solver.coarsening-factor", "8"], "coarsening_factor", 8),
        (["--solver.coarsening_factor", "8", "4"], "coarsening_factor", [8, 4]),
        (["--solver.coarsening-factor", "[8, 4]"], "coarsening_factor", [8, 4]),
        (["--solver.cf-relaxations", "1", "2"], "cf_relaxations", [1, 2]),
        (["--solver.rtol", "1e-6"], "rtol", 1e-6),
        (["--solver.levels", "null"], "levels", None),
        (["--solver.skip-first-down", "true"], "skip_first_down", True),
        (["--solver.cycle", "F"], "cycle", "F"),
    ],
)
def test_values_from_the_command_line(tmp_path, words, key, value):
    assert getattr(read(tmp_path, *words).solver, key) == value


def test_the_adjoint_is_as_the_solver_where_it_says_nothing(tmp_path):
    read_back = read(tmp_path, "--solver.coarsening-factor", "8", "--adjoint.cycles", "1", "--solver.rtol", "0.1")
    assert read_back.adjoint == read_back.solver.model_copy(update={"cycles": 1})


def test_devices_alone_choose_the_mesh(tmp_path):
    assert read(tmp_path).backend.kind == "local"
    assert read(tmp_path, "--backend.devices", "2").backend.kind == "mesh"
    assert read(tmp_path, "--output.folder", "123", "--name", "2024").output.folder == "123"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config.yaml: the file is empty; expected keys"),
        ("# nothing\n", r"the file is empty"),
        ("- 1\n", r"expected keys and values at the top, found \[1\]\. Write"),
        ("a: [1\n", r"config.yaml, line 2, column 1: not valid YAML"),
        ("seed: 1\nseed: 2\n", r"line 2, column 1: not valid YAML: the key 'seed' is given twice"),
        ("seed: 2024-13-45\n", r"seed = '2024-13-45': expected an integer"),
        (
            PLAIN + "solver.cycles: 1\n",
            r"solver\.cycles: dotted keys are for the command line \(--solver\.cycles \.\.\.\)",
        ),
        (PLAIN + "solver.cycles: 1\n", r"In a file write solver: \{cycles: \.\.\.\}\."),
        (PLAIN + "optimizer.learning-rate: 1\n", r"In a file write optimizer: \{learning_rate: \.\.\.\}\."),
        (PLAIN + "name: 2024\n", r"name = 2024: expected letters.*\. Write it in quotes\."),
        *(
            (
                PLAIN + f"backend: {{coordinator: '{c}', processes: 2, process: 0}}\n",
                "expected detect, mpi4py or HOST:PORT",
            )
            for c in (
                "localhost",
                ":80",
                "a b:80",
                "host:0",
                "host:65536",
                "host:\u0661",
                "::1:80",
                "[::1:80",
                "http://a:80",
                "[z]:80",
            )
        ),
        ("[" * 5000, r"not valid YAML"),
        ("seed: 1\n", r"problem: missing; expected a section with the keys name, .* Add it"),
        ("problem: {}\n", r"problem\.name: missing; expected file or .* mnist or text\. Add it"),
        ("problem: {name: mnis}\n", r"problem\.name = 'mnis': expected file or .* mnist or text\."),
        ("problem: {name: mnist, shft: 2}\n", r"problem\.shft: unknown key\. Did you mean shift\? Known here: name"),
        ("problem: {name: mnist, shift: 15}\n", r"problem\.shift = 15: expected an integer >= 0 and <= 14\. For"),
        ("problem: mnist\n", r"problem = 'mnist': expected a section with the keys name"),
        (PLAIN + "solver:\n", r"solver = None: expected a section with the keys coarsening_factor"),
        (PLAIN + "layers: 8\n", r"layers: unknown key\. Did you mean network\.layers\? Known here: name, seed"),
        (
            PLAIN + "network: {layer: 8}\n",
            r"network\.layer: unknown key\. Did you mean layers\? Known here: kind, layers, width",
        ),
        (PLAIN + "network: {zzz: 8}\n", r"network\.zzz: unknown key\. Leave it out\."),
        (PLAIN + "1: 2\n", r"1: unknown key"),
        (PLAIN + "on: 2\n", r"on: unknown key"),
        (PLAIN + "name: a\x07\n", r"not valid YAML: character 36 has code 7, which a text has not"),
        (PLAIN + "optimizer: {learning_rate: 1e-50}\n", r"learning_rate = 1e-50: expected a number from 1\.2e-38 to"),
        (PLAIN + "penalty: {gamma_ddt: 1e308}\n", r"gamma_ddt = 1e\+308: expected .* or dtype float64"),
        (PLAIN + "seed: true\n", r"seed = True: expected an integer >= 0 .* For example --seed 0"),
        (PLAIN + 'network: {width: "8"}\n', r"network\.width = '8': expected an integer >= 1"),
        (PLAIN + "network: {layers: 64.0}\n", r"network\.layers = 64\.0: expected an integer >= 1"),
        (PLAIN + "network: {final_time: .inf}\n", r"network\.final_time = inf: expected a number > 0"),
        (PLAIN + "penalty: {gamma_tik: -1}\n", r"penalty\.gamma_tik = -1: expected a number >= 0\. For example"),
        (PLAIN + "dtype: float16\n", r"dtype = 'float16': expected float32 or float64"),
        (PLAIN + "name: a/b\n", r"name = 'a/b': expected letters, digits"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text=text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--solver.cycls 2", r"--solver\.cycls: unknown option\. Did you mean --solver\.cycles"),
        ("--layers 2", r"--layers: unknown option\. Did you mean --network\.layers\?"),
        ("--quite", r"--quite: unknown option\. Did you mean --output\.quiet"),
        ("--resum runs/x", r"--resum: unknown option\. Did you mean --resume"),
        ("--learning-rat 1", r"--learning-rat: unknown option\. Did you mean --optimizer\.learning-rate\?"),
        ("--xyzzy", r"--xyzzy: unknown option\. See --help"),
        ("--solver.cyc 2", r"--solver\.cyc: unknown option"),
        ("--problem.shift 2", r"problem\.shift: unknown key\. Leave it out\. Known here: name, train_per_class"),
        ("--training.batch-size 0", r"training\.batch_size = 0: expected an integer >= 1 or null\. For example"),
        ("--seed", r"--seed: expected 1 argument"),
        ("--seed 1 --seed 2", r"--seed: given twice\. Keep one"),
        ("more.yaml", r"more\.yaml: unexpected, as no option takes it"),
        (
            "--solver.cycles 0",
            r"solver\.cycles = 0: expected an integer >= 1 and <= 1000\. For example --solver\.cycles 2",
        ),
        ("--solver.cycles two", r"solver\.cycles = 'two': expected an integer"),
        ("--solver.cycle W", r"solver\.cycle = 'W': expected V or F"),
        ("--solver.rtol -1e-3", r"solver\.rtol = -0\.001: expected a number >= 0 or null"),
        ("--solver.coarsening-factor 1", r"solver\.coarsening_factor = 1: expected an integer >= 2 or a list"),
        ("--solver.coarsening-factor 8 1", r"solver\.coarsening_factor = \[8, 1\]: expected an integer >= 2 or a list"),
        ("--solver.coarsening-factor 64", r"solver\.coarsening_factor = 64: expected a factor .* Take a smaller"),
        ("--solver.coarsening-factor 8 8", r"coarsening_factor = \[8, 8\]: expected 1 factor.*64 > 8"),
        ("--adjoint.coarsening-factor 64", r"adjoint\.coarsening_factor = 64: expected a factor"),
        ("--solver.cf-relaxations 1", r"solver\.cf_relaxations = 1: expected a list of 2"),
        ("--backend.devices 17", r"backend\.devices = 17: expected at most 16, the number of intervals"),
        ("--backend.kind local --backend.devices 2", r"backend\.devices = 2: expected 1 with backend\.kind = 'local'"),
        ("--backend.kind mpi --backend.devices 2", r"backend\.devices = 2: expected null with backend\.kind = 'mpi'"),
        (f"{WIDE} --backend.data 2", r"network\.layout = 'width_first': expected batch_first with backend\.data = 2"),
        (f"{WIDE} --training.batch-size 9", r"network\.layout = 'width_first': .* warm mini-batches.*start: cold"),
        (f"{WIDE} --network.kind convolutional", r"network\.layout = 'width_first': .* network\.kind = 'conv"),
        ("--iterations 10 --optimizer.warmup 10", r"optimizer\.warmup = 10: expected fewer than iterations = 10"),
        (
            "--training.method sequential --solver.cycles 1",
            r"--solver\.cycles 1: expected not .* = 'sequential'\. Leave",
        ),
        (
            "--training.method sequential --training.schedule predict_then_sweep",
            r"--training\.schedule predict.* no effect",
        ),
        ("--optimizer.ls-max 4", r"--optimizer\.ls-max 4: expected not .* optimizer\.name = 'adam'\. Leave it out, or"),
        (f"{PUBLISHED} --optimizer.warmup 4", r"--optimizer\.warmup 4: .*effect with optimizer\.name = 'published'"),
        (f"{PUBLISHED} --optimizer.hessian bfgs --optimizer.memory 4", r"memory 4: .* optimizer\.hessian = 'bfgs'"),
        (f"{PUBLISHED} --optimizer.c1 1", r"optimizer\.c1 = 1: expected a number > 0 and < 1"),
        (f"{PUBLISHED} --optimizer.hessian dfp", r"optimizer\.hessian = 'dfp': expected identity or l-bfgs or bfgs"),
        (f"{PUBLISHED} --optimizer.initial-step 0", r"optimizer\.initial_step = 0: expected a number > 0"),
        (f"{PUBLISHED} {PREDICT}", r"training\.schedule = 'predict_then_sweep': expected cycles_then_gradient with"),
        (f"{PUBLISHED} --training.batch-size 8", r"training\.batch_size = 8: expected null with optimizer\.name"),
        (f"{PUBLISHED} --training.start cold", r"training\.start = 'cold': expected warm with optimizer\.name"),
        ("--nested.networks 5", r"nested\.networks = 5: expected network\.layers = 64 to be a multiple of 256, nested"),
        ("--nested.networks 3 --nested.iterations 1 2 3", r"nested\.iterations = \[1, 2, 3\]: expected 2 numbers"),
        ("--nested.networks 3 --nested.factor 8", r"nested network of 1 layers: solver\.coarsening_factor = 4"),
        ("--nested.factor 2", r"--nested\.factor 2: expected not .* nested\.networks = 1"),
        ("--nested.networks 2 --nested.loss 0", r"nested\.loss = 0: expected a number > 0 or null"),
        (f"{PREDICT} --solver.levels 2 --adjoint.cycles 1", r"--adjoint\.cycles 1: expected not .* with two levels"),
        (f"{PREDICT} --solver.rtol 0.1", r"solver\.rtol = 0\.1: expected null, the default, with training\.sch"),
        (f"{PREDICT} --adjoint.skip-first-down true", r"adjoint\.skip_first_down = True: expected false, the def"),
        (f"{PREDICT} --solver.cf-relaxations 1 1", r"solver\.cf_relaxations = \[1, 1\]: expected 0 1, the def"),
        (f"{PREDICT} --adjoint.coarsening-factor 8", r"adjoint\.coarsening_factor = 8: expected the solver's, 4, on"),
    ],
)
def test_wrong_command_lines(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, *words.split())


def test_all_wrong_keys_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)seed = -1.*solver\.cycles = 0.*nonsense: unknown key"):
        read(tmp_path, "--solver.cycles", "0", text=PLAIN + "seed: -1\nnonsense: 1\n")


def test_missing_file_and_folder_and_binary(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file\. Configs here:"):
        config.read(["nowhere.yaml"], "experiments.train")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.read([str(tmp_path)], "experiments.train")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected a YAML text file in UTF-8"):
        config.read([str(tmp_path / "binary")], "experiments.train")
    with pytest.raises(ConfigError, match="CONFIG: missing; expected a YAML file first"):
        config.read(["--seed", "1"], "experiments.train")


def test_every_key_is_described_and_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        config.read(["--help-all"], "experiments.train")
    text = capsys.readouterr().out
    for key, rule in keys.fields().items():
        assert keys.flag(key) in text
        assert "description" in rule or key == "problem.name"


def test_the_short_help_fits_a_screen_and_shows_examples(capsys):
    for word in ("--help", "-h"):
        with pytest.raises(SystemExit, match="0"):
            config.read(["configs/level_sets.yaml", word], "experiments.train")
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < 60
        for key in command_line.COMMON:
            assert any(keys.flag(key) in line for line in lines)
        for shown in ("--resume RUN", "mpirun -n 2", "--help-all", "--quiet"):
            assert any(shown in line for line in lines)


def test_quiet_is_short_for_its_key(tmp_path):
    assert not read(tmp_path).output.quiet
    assert read(tmp_path, "--quiet").output.quiet


@pytest.mark.parametrize(
    ("layers", "options", "sizes"),
    [
        (64, {}, [64, 16, 4]),
        (64, {"min_coarse": 1}, [64, 16, 4, 1]),
        (64, {"levels": 2}, [64, 16]),
        (203, {"coarsening_factor": [8, 2]}, [203, 25, 12]),
        (64, {"coarsening_factor": 2, "levels": 3}, [64, 32, 16]),
        (7, {"coarsening_factor": 4}, [7]),
    ],
)
def test_grid_sizes(layers, options, sizes):
    solver = {"solver": options, "network": {"layers": layers}, "problem": {"name": "level_sets"}}
    assert checks.grid_sizes(Config.model_validate(solver), "adjoint") == sizes


def test_the_program_says_it_shortly_and_exits_with_2(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"problem": {"name": "level_sets"}, "iteratons": 3}))
    command = [sys.executable, "-m", "experiments.train", str(tmp_path / "config.yaml"), "--solver.cycles", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "iteratons: unknown key. Did you mean iterations?" in done.stderr
    assert len(done.stderr.splitlines()) == 3
