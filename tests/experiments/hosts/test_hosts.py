"""Training over two hosts, network namespaces of this machine: as in one process, and a cut link is told."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.runs import TINY, rows
from processes import launch

from experiments.hosts import __main__ as command
from experiments.hosts.namespaces import ADDRESSES, Hosts, unavailable
from experiments.runs.folder import read_metrics

PORT = 47711


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config of a tiny training."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY)
    return file


def needs_hosts():
    """Skip where network namespaces are not allowed."""
    if reason := unavailable():
        pytest.skip(f"no two hosts on this machine: {reason}")


def commands(hosts, config, folder, *options):
    """A process on each host."""
    train = [sys.executable, "-m", "experiments.train", str(config), "--output.folder", str(folder), *options]
    spread = ["--backend.coordinator", f"{ADDRESSES[0]}:{PORT}", "--backend.processes", "2", "--backend.process"]
    return [hosts.on(i, [*train, *spread, str(i)]) for i in range(2)]


@pytest.mark.slow
def test_two_hosts_train_as_one_does_and_a_cut_link_is_told_within_a_minute(config, tmp_path):
    needs_hosts()
    alone = [sys.executable, "-m", "experiments.train", str(config), "--output.folder", str(tmp_path / "alone")]
    launch.run_all([alone])
    with Hosts(bandwidth=1e9) as hosts:
        launch.run_all(commands(hosts, config, tmp_path / "two"))
        assert_close(tmp_path / "two", tmp_path / "alone")

        endless = tmp_path / "endless"
        cut = []

        def pull_the_plug(started, out):
            deadline = time.monotonic() + 90
            while not (endless / "metrics.jsonl").exists() or not read_metrics(endless):
                assert time.monotonic() < deadline, "no iteration"
                time.sleep(0.2)
            hosts.cut()
            cut.append(time.monotonic())

        run = commands(hosts, config, endless, "--iterations", "100000000")
        codes, printed = launch.outcome(run, 180, patience=60.0, meanwhile=pull_the_plug)
        assert time.monotonic() - cut[0] < 60, printed
        assert all(codes), printed
        assert "cut off from the others" in printed, printed
        assert f"--resume {endless}" in printed, printed


@pytest.mark.slow
def test_ranks_on_two_hosts_with_a_latency_train_as_one_does(config, tmp_path):
    needs_hosts()
    launch.needs_mpi()
    alone, two = tmp_path / "alone", tmp_path / "two"
    train = [sys.executable, "-m", "experiments.train", str(config), "--iterations", "4", "--output.folder"]
    launch.run_all([[*train, str(alone)]])
    with Hosts(latency=1e-3) as hosts:
        launch.run_all([[*hosts.mpirun(tmp_path), *train, str(two), "--backend.kind", "mpi"]])
    assert_close(two, alone)


def assert_close(folder, other):
    """The same metrics, to what rounding grows to in so few iterations."""
    for one, two in zip(rows(folder), rows(other), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, two[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_a_link_has_its_latency_and_bandwidth_and_leaves_nothing_behind():
    needs_hosts()
    talk = (
        "import socket, sys, time\n"
        "s = socket.create_server((sys.argv[1], 47712)) if sys.argv[2] == '0' else None\n"
        "c = s.accept()[0] if s else socket.create_connection((sys.argv[1], 47712))\n"
        "for n in (1, 2_000_000):\n"
        "    start, back = time.monotonic(), 0\n"
        "    if not s: c.sendall(b'x' * n)\n"
        "    while back < (n if s else 1): back += len(c.recv(1 << 20))\n"
        "    if s: c.sendall(b'x')\n"
        "    else: print(time.monotonic() - start)\n"
    )
    times = []
    for bandwidth, latency in ((1e8, 0.0), (None, 0.05)):
        with Hosts(bandwidth, latency) as hosts:
            server = subprocess.Popen(hosts.on(0, [sys.executable, "-c", talk, ADDRESSES[0], "0"]))
            ask = hosts.on(1, [sys.executable, "-c", talk, ADDRESSES[0], "1"])
            for _ in range(100):
                client = subprocess.run(ask, capture_output=True, text=True)
                if client.returncode == 0:
                    break
                time.sleep(0.1)
            server.wait(20)
            times.append([float(line) for line in client.stdout.split()])
    (quick, long), (slow, _) = times
    assert long > 0.9 * 2e6 * 8 / 1e8 > quick, times
    assert slow >= 0.1, times
    assert f"-{os.getpid()}" not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout


def test_steps_are_predicted_from_the_fitted_link_and_the_crossings_of_each_kind_of_message():
    fitted = {
        "bandwidth": 1e9,
        "latency": 0.0,
        "messages": {"sends": 1e-5, "gathers": 2e-5, "sums": 4e-5},
        "steps": {"a": 0.01},
    }
    slow = {"bandwidth": 1e9, "latency": 2e-3, "messages": {"sends": 2.01e-3, "gathers": 4.02e-3, "sums": 6.04e-3}}
    trips = command.crossings([fitted, slow])
    for kind, expected in {"sends": 1.0, "gathers": 2.0, "sums": 3.0}.items():
        np.testing.assert_allclose(trips[kind], expected)
    counts = {"a": {"sends": 5, "gathers": 2, "sums": 1, "bytes": 1000}}
    links = [{"bandwidth": 1e8, "latency": 0.0}, {"bandwidth": 1e9, "latency": 1e-3}]
    one, two = (command.predicted(fitted, link, counts, trips) for link in links)
    np.testing.assert_allclose(one["a"], 0.01 + 1000 * 8 * (1e-8 - 1e-9))
    np.testing.assert_allclose(two["a"], 0.01 + (5 * 1 + 2 * 2 + 1 * 3) * 1e-3)
    assert set(command.crossings([fitted]).values()) == {0.0}


def test_figures_are_predicted_anew_with_given_crossings_and_others_are_refused_by_name(tmp_path, capsys):
    steps = {"predict, then sweep": 0.01, "1 + 1 cycles": 0.02, "2 + 2 V-cycles": 0.03}
    links = [{"bandwidth": 1e9, "latency": latency, "steps": steps} for latency in (0.0, 1e-3)]
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"links": links}))
    output = tmp_path / "out.json"
    assert command.main(["--figures", str(file), "--crossings", "2", "2", "3", "--output", str(output)]) == 0
    assert "Crossings of the link by a message: sends 2.00, gathers 2.00, sums 3.00" in capsys.readouterr().out
    record = json.loads(output.read_text())
    predicted, counts = record["links"][1]["predicted"], record["counts"]
    for name, seconds in steps.items():
        trips = 2 * counts[name]["sends"] + 2 * counts[name]["gathers"] + 3 * counts[name]["sums"]
        np.testing.assert_allclose(predicted[name], seconds + trips * 1e-3)
    file.write_text("[]")
    assert command.main(["--figures", str(file)]) == 2
    assert "figures.json: expected what --output wrote" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["x", "0:1", "1:-1", "1:2000", "1000"])
def test_a_link_out_of_range_is_named(word, capsys):
    with pytest.raises(SystemExit):
        command.main(["--links", word])
    assert word in capsys.readouterr().err
