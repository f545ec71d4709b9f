"""What a GPU is to be asked, by one command: the model's figures without one, and every part on a CPU, made small."""

import json

import pytest

import jaxmgrit as jm
from experiments.gpu import __main__ as command
from experiments.gpu.predicted import Gpu, Layer, newton, one_shot

SMALL = {
    "LAYERS": {32: 4},
    "WIDTHS": (4,),
    "BATCHES": (3,),
    "ROUGH": 32,
    "SWEEPS": (1,),
    "KEPT": (4,),
    "STEPS": 64,
    "SIZES": ((2, 3),),
    "FACTORS": (8,),
}


def shrink(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(command, name, value)


def test_where_latency_is_all_that_counts_an_iteration_is_its_passes_one_after_another():
    gpu, layer = Gpu(), Layer(8, 32)
    smooth = jm.MGRIT(32, levels=2, coarse_params=jm.average, coarse_step=jm.midpoint)
    # 32 coarse steps of two layers ahead, and ahead and back; 32 layers ahead and back: over 1024 ahead and back.
    passes = 32 * 2 * gpu.forward + 32 * 2 * (gpu.forward + gpu.backward) + 32 * (gpu.forward + gpu.backward)
    assert one_shot(gpu, 1024, layer, smooth) == pytest.approx(passes / (1024 * (gpu.forward + gpu.backward)))
    sweeps = [
        one_shot(gpu, 1024, layer, jm.MGRIT(32, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(p)))
        for p in (1, 2, 3)
    ]
    assert sweeps[1] - sweeps[0] == pytest.approx(sweeps[2] - sweeps[1])
    assert sweeps[0] < sweeps[1] < 1


def test_layers_that_fill_the_gpu_gain_nothing_from_picard_sweeps():
    # 8 points of width 4096 are read from memory in no time, but multiplied with for long.
    large = Layer(4096, 4096)
    rough = jm.MGRIT(8, levels=2, coarse_params=jm.all_layers, coarse_step=jm.picard(2))
    assert one_shot(Gpu(), 64, large, rough) > 1 > one_shot(Gpu(), 64, Layer(4, 4), rough)


def test_newton_is_hundreds_of_times_as_fast_on_small_cells_and_of_no_use_on_large_ones():
    small, large = newton(Gpu(), 10_000, 4, 16, 16), newton(Gpu(), 10_000, 512, 256, 16)
    assert 1 / small["newton"] == pytest.approx(220, rel=0.1)
    assert large["newton"] > 1
    assert newton(Gpu(), 10_000, 4, 16, 64)["newton"] > small["newton"]


def test_predictions_need_no_gpu_and_a_missing_one_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    shrink(monkeypatch)
    assert command.main(["--predict", "--folder", str(tmp_path / "model")]) == 0
    rows = json.loads((tmp_path / "model" / "gpu.json").read_text())["rows"]
    assert len(rows) == 1 + 2 + 2
    assert all(row["predicted"] > 0 and row["measured"] is None for row in rows)
    assert (tmp_path / "model" / "gpu.md").read_text().strip() == capsys.readouterr().out.strip()
    assert command.main(["--folder", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "no gpu" in said and "--predict" in said and "Traceback" not in said


@pytest.mark.slow
def test_every_part_is_measured_beside_its_prediction(tmp_path, monkeypatch, capfd):
    shrink(monkeypatch)
    jobs = [job for part in ("rough", "recurrences") for job in command.PARTS[part]("cpu")]
    words = ["--platform", "cpu", "--parts", "rough", "recurrences", "--folder", str(tmp_path)]
    assert command.main(words) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["platform"] == "cpu" and record["device"] and record["jax"]
    assert len(record["rows"]) == sum(len(job.rows(None)) for job in jobs)
    for row in record["rows"]:
        assert row["measured"] > 0 and row["predicted"] > 0 and row["milliseconds"] > 0
    assert "GRU, N = 64" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch, capfd):
    def fails(platform):
        yield command.Job("nothing", ["experiments.no_such_module"], lambda made: [])

    monkeypatch.setattr(command, "PARTS", {"recurrences": fails, "zoo": fails})
    assert command.main(["--platform", "cpu", "--parts", "recurrences", "zoo", "--folder", str(tmp_path)]) == 1
    assert "failed: nothing, nothing" in capfd.readouterr().err
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == []
