"""Starts and watches the processes of this host where several train one model. Standard library only.

What they are told is what torchrun tells (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), so that torchrun itself, or
AWS's toolkit with it, can start them instead. Unlike torchrun this hands on their exit codes, and leaves them the time that
SageMaker leaves a job for its last checkpoint.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_code import environment
from model_code.training.errors import BadConfiguration, ProcessLost, Stopped
from model_code.training.log import report

DEFAULT_PORT = 29500  # torchrun's
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0  # from the first failure of a process to the end of all
_NAME_SECONDS = 300.0  # SageMaker: the names of the other hosts may resolve a little after the start
_HINT = "SageMaker writes it below input/config: hosts, a list of names, and current_host, one of them."


@dataclass(frozen=True)
class World:
    """This process's number among all of the job, their number, and its number on this host."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> "World | None":
        """None where nobody started this process as one of several. Raises BadConfiguration."""
        if environment.RANK not in os.environ:
            return None
        rank, size, local_rank = map(_number, (environment.RANK, environment.WORLD_SIZE, environment.LOCAL_RANK))
        if not local_rank <= rank < size:  # it would wait for processes that nobody starts
            raise BadConfiguration(
                f"{environment.RANK}: found {rank}, {environment.WORLD_SIZE} {size}, {environment.LOCAL_RANK} {local_rank}; "
                "allowed: a rank below the size, and none on this host above it",
                "They come from torchrun, all or none.",
            )
        return cls(rank, size, local_rank)


@dataclass(frozen=True)
class Hosts:
    """The hosts of the job in SageMaker's order, and this one."""

    names: tuple[str, ...]
    current: str
    interface: str | None

    @classmethod
    def parse(cls, document: Mapping[str, Any], origin: str) -> "Hosts":
        """From the content of resourceconfig.json. Raises BadConfiguration."""
        names, current = document.get("hosts"), document.get("current_host")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise BadConfiguration(f"{origin}: hosts: found {names!s:.60}; allowed: one name or more", _HINT)
        if len(set(names)) != len(names):  # two hosts would take the same rank, and all wait for the other one
            raise BadConfiguration(f"{origin}: hosts: found {names!s:.60}; allowed: each name once", _HINT)
        if not isinstance(current, str) or current not in names:
            raise BadConfiguration(f"{origin}: current_host: found {current!s:.60}; allowed: {', '.join(names)}", _HINT)
        interface = document.get("network_interface_name")
        return cls(tuple(names), current, interface if isinstance(interface, str) else None)


def run_processes(model: str, hosts: Hosts, count: int, stop: threading.Event) -> int:
    """Run this host's `count` processes of the job; returns 0 when all succeeded, else their exit code.

    Each runs the model's `train.py` and writes the failure file itself. SIGTERM is handed on to all. Raises Stopped before
    they are started, and ProcessLost where one was killed.
    """
    address = hosts.names[0] if len(hosts.names) > 1 else "localhost"
    _wait_for_name(address, stop)
    variables = _variables(hosts, address, count)
    first = hosts.names.index(hosts.current) * count
    report(f"processes {first} to {first + count - 1} of {len(hosts.names) * count}; the first one is on {address}")
    command = [sys.executable, "-m", f"model_code.training.{model}.train"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            own = {environment.RANK: str(first + number), environment.LOCAL_RANK: str(number)}
            processes.append(subprocess.Popen(command, env=os.environ | variables | own))
        codes = _watch(processes, stop)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    _raise_if_killed(codes, first, stop)
    return max(codes)


def _variables(hosts: Hosts, address: str, count: int) -> dict[str, str]:
    port = os.environ.get(environment.MASTER_PORT) or (str(DEFAULT_PORT) if len(hosts.names) > 1 else _free_port())
    variables = {
        environment.WORLD_SIZE: str(len(hosts.names) * count),
        environment.MASTER_ADDR: address,
        environment.MASTER_PORT: port,
    }
    if len(hosts.names) > 1 and hosts.interface:
        variables |= dict.fromkeys(environment.INTERFACES, hosts.interface)
    if count > 1 and environment.THREADS not in os.environ:  # else each would start a thread for every core
        variables[environment.THREADS] = str(max(1, (os.cpu_count() or 1) // count))
    return variables


def _watch(processes: Sequence["subprocess.Popen[bytes]"], stop: threading.Event) -> list[int]:
    """Wait for the end of all, or a while for that of the others once one has failed; returns their exit codes."""
    told, deadline = False, float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if stop.is_set() and not told:
            told = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        if deadline == float("inf") and any(process.returncode for process in processes):
            deadline = time.monotonic() + _GRACE_SECONDS
        time.sleep(_POLL_SECONDS)
    return [1 if process.returncode is None else process.returncode for process in processes]


def _raise_if_killed(codes: list[int], first: int, stop: threading.Event) -> None:
    killed = {first + number: -code for number, code in enumerate(codes) if code < 0}
    if stop.is_set() and signal.SIGTERM in killed.values():
        raise Stopped("STOPPED by SIGTERM while the processes started; no model was written", "Start the job again.")
    for rank, number in killed.items():
        raise ProcessLost(
            f"PROCESS_LOST process {rank} of the job was killed by signal {number}",
            "Signal 9 mostly means that the memory of the instance did not suffice; 11 is a crash in a library.",
        )


def _wait_for_name(name: str, stop: threading.Event) -> None:
    deadline = time.monotonic() + _NAME_SECONDS
    while True:
        try:
            socket.getaddrinfo(name, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BadConfiguration(
                    f"resourceconfig.json: hosts: {name} cannot be resolved ({error.strerror})",
                    "The first host of the job has to be known to all by its name.",
                ) from error
        if stop.is_set():
            raise Stopped(f"STOPPED by SIGTERM while the name {name} was looked up", "Start the job again.")
        time.sleep(_POLL_SECONDS)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise BadConfiguration(
            f"{name}: found {text[:40]!r}; allowed: a whole number",
            f"{environment.RANK}, {environment.WORLD_SIZE} and {environment.LOCAL_RANK} come from torchrun, all or none.",
        )
    return int(text)
