"""Two hosts on one machine: network namespaces, joined by a link of a given bandwidth and latency (Linux, as root)."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.hosts import relay

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "wire"
# What may be sent at once, or a message would take no time: two packets, and what passes while a timer is late.
LEAST_BURST, LATE = 2 * (relay.MTU + 14), 5e-5  # bytes, seconds
# A connection is as in the midst of a long training: packets sent at once, and nothing paced by guesses of a speed.
ROUTE = ("initcwnd", "400", "initrwnd", "400", "congctl", "reno")
QUEUE = "400ms"  # what waits longer for a full link is dropped, as routers do


class HostsError(Exception):
    """Hosts cannot be made here; the message says why."""


def unavailable() -> str | None:
    """Why there can be no such hosts on this machine, or None."""
    missing = [name for name in ("ip", "tc", "nsenter", "unshare", "hostname", "sysctl") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be found; install iproute2 and util-linux"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    # Root is not enough in many containers; only trying tells.
    name = f"jaxmgrit-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Hosts:
    """Two hosts while it is open; use it as a context.

    They share files and cores, and have network interfaces of their own with the addresses `ADDRESSES`. Latency is made
    by a process that holds every packet back for a while, since not every kernel can (netem); it needs some of a core.

    Args:
        bandwidth: Of the link in each direction, bits per second; None: as fast as the machine copies.
        latency: Seconds that a packet is on its way.

    Raises:
        HostsError: There can be none here.
    """

    def __init__(self, bandwidth: float | None = None, latency: float = 0.0) -> None:
        if reason := unavailable():
            raise HostsError(f"{reason}.")
        self._names = [f"jaxmgrit-{os.getpid()}-{id(self):x}-{i}" for i in range(2)]
        self._bandwidth, self._latency = bandwidth, latency
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Hosts":
        try:
            for name in self._names:
                _run("ip", "netns", "add", name)
            if self._latency:
                self._make_relay()
            else:
                first, second = self._names
                peer = ["peer", "name", INTERFACE, "netns", second]
                _run("ip", "link", "add", INTERFACE, "netns", first, "type", "veth", *peer)
            for name, address in zip(self._names, ADDRESSES, strict=True):
                _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
                # In a new namespace even the loopback is down.
                _run("ip", "-n", name, "link", "set", "lo", "up")
                _run("ip", "-n", name, "link", "set", INTERFACE, "mtu", str(relay.MTU), "up")
                route = ["10.77.0.0/24", "dev", INTERFACE, "src", address, *ROUTE]
                _run("ip", "-n", name, "route", "replace", *route)
                idle = ["sysctl", "-qw", "net.ipv4.tcp_slow_start_after_idle=0"]
                _run("nsenter", f"--net=/run/netns/{name}", *idle)
                if self._bandwidth:
                    burst = max(LEAST_BURST, round(self._bandwidth / 8 * LATE))
                    rate = ["rate", f"{self._bandwidth:.0f}bit", "burst", str(burst), "latency", QUEUE]
                    _run("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, "root", "tbf", *rate)
        except BaseException:
            # Also after Ctrl-C: namespaces outlive the process that has made them.
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()
        for name in self._names:
            # Unchecked: where __enter__ has failed half-way, some were never made.
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """The command that runs a command on a host, 0 or 1."""
        return [*self._enter(self._names[host], ADDRESSES[host]), *command]

    @staticmethod
    def _enter(name: str, address: str) -> list[str]:
        # Programs listen at the address that their host's name means, so each host has its address for a name.
        # Programs look for network interfaces in /sys, which shows those of the namespace that it was mounted in.
        own = f'mount -t sysfs none /sys && hostname {address} && exec "$@"'
        named = ["unshare", "--uts", "--mount", "sh", "-c", own, "sh"]
        return ["nsenter", f"--net=/run/netns/{name}", *named]

    def cut(self) -> None:
        """Take the link away, as a pulled plug does."""
        _run("ip", "-n", self._names[1], "link", "set", INTERFACE, "down")

    def mpirun(self, folder: Path) -> list[str]:
        """The beginning of a command with an MPI rank on either host; a program for it is written to a folder."""
        launcher = folder / "launch_on_host"
        cases = "\n".join(
            f'    {a}) exec {shlex.join(self._enter(name, a))} sh -c "$command" ;;'
            for a, name in zip(ADDRESSES, self._names, strict=True)
        )
        launcher.write_text(
            "#!/bin/sh\n"
            "# Called by mpirun as by ssh: options, a host, and a command that is for a shell.\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            f'host=$1\nshift\ncommand=$*\ncase "$host" in\n{cases}\nesac\n',
            encoding="utf-8",
        )
        launcher.chmod(0o755)
        # Options of Hydra, the mpirun of MPICH.
        hosts = ["-hosts", ",".join(ADDRESSES), "-localhost", ADDRESSES[0]]
        # Else ranks would talk through memory, whatever their hosts are called.
        link = ["-genv", "UCX_TLS", "tcp,self"]
        start = ["mpirun", *link, "-launcher", "ssh", "-launcher-exec", str(launcher), "-iface", INTERFACE]
        return self.on(0, [*start, *hosts, "-n", "2", "-ppn", "1"])

    def _make_relay(self) -> None:
        ends = [f"jm{os.getpid() % 100000}-{i}" for i in range(2)]  # 15 characters at most
        command = [sys.executable, "-I", "-S", relay.__file__, *ends, str(self._latency)]
        self._relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._relay.stdout is not None
        # The relay says so once both interfaces exist; without a word it has ended, and there are none.
        if self._relay.stdout.readline().strip() != relay.HELLO:
            raise HostsError("a link with a latency needs the kernel's TUN/TAP driver (/dev/net/tun).")
        for end, name in zip(ends, self._names, strict=True):
            _run("ip", "link", "set", end, "netns", name)
            _run("ip", "-n", name, "link", "set", end, "name", INTERFACE)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}.")
