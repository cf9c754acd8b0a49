"""Minutes of good and bad requests, raw abuse and a killed worker, against our own doors; and whether each promise held.

    python -m bench.soak [--minutes 10] [--quick] [RELEASE_DIR]

Three quarters of the time go to the SageMaker container's process with a worker for each core, the rest to the Function: its
package, built anew from the same release, in the development host. Each part first takes requests as fast as they come, which
warms everything up and says how many a second this machine can do, clients included; then four fifths of that. In the middle
one of the container's workers gets SIGKILL. Loopback only; it ends what it started.

Exit code 0 where every promise held, 1 where one did not (the report says which), 2 without a release, 130 interrupted.
"""

import asyncio
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from bench import interruption, soak_report
from bench.core import unpack
from bench.parts import arguments
from bench.payloads import make_payloads
from bench.servers import LOOPBACK, end, free_port, ours, running
from bench.soak_client import Clients, Pace, Tally
from bench.soak_report import Part, Sample
from bench.soak_requests import make_requests
from ferry import processes
from ferry.errors import FerryError
from ferry.package import build_package
from infra.release import ReleaseError, read_release
from infra.settings import ROOT
from model_code.environment import RELEASE_FILE
from model_code.inference.contract import Signature
from model_code.inference.errors import ModelInvalid

MINUTES = 10.0
QUICK_MINUTES = 0.4
SHARE_OF_CAPACITY = 0.8
CONNECTIONS = 16
SEED = 1
START_SECONDS = 60
# Until then a connection may be lost to a killed worker, and a new one has to have taken its place.
RECOVERY_SECONDS = 30


@dataclass(frozen=True)
class Door:
    """One running server: where it answers, the first of its processes, and the one to kill or None."""

    title: str
    port: int
    path: str
    ping: str
    leader: int
    workers: int

    def processes(self) -> list[psutil.Process]:
        """Those that answer."""
        leader = psutil.Process(self.leader)
        return leader.children() if self.workers else [leader]


@dataclass
class Watch:
    """What the processes of a door take while it is under load."""

    door: Door
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> None:
        for process in self.door.processes():
            try:
                with process.oneshot():
                    memory = process.memory_full_info()
                    sample = Sample(process.pid, time.monotonic(), memory.rss, memory.pss, process.num_fds())
            except psutil.Error:  # it has just been killed
                continue
            self.samples.append(sample)

    def descriptors(self) -> int:
        return sum(process.num_fds() for process in self.door.processes())


async def soak(door: Door, signature: Signature, seconds: float) -> Part:
    """One door under load for so many seconds. Raises AssertionError where it does not even answer good requests."""
    random = Random(SEED)
    clients = Clients(door.port, door.path, make_requests(signature, SEED))
    watch = Watch(door)
    await clients.remember()
    warm_up = min(30.0, seconds / 5)
    print(f"{door.title}: as many requests as it takes for {warm_up:.0f} s", flush=True)
    warm = Tally()
    await clients.run(warm, CONNECTIONS, Pace(None), _for(warm_up))
    rate = warm.answers.total() / warm_up * SHARE_OF_CAPACITY
    await _settle(watch)
    part = Part(door.title, rate / SHARE_OF_CAPACITY, rate, descriptors_at_start=watch.descriptors())
    print(f"{door.title}: {rate:.0f} requests a second for {seconds - warm_up:.0f} s", flush=True)
    part.tally = Tally(unexpected=warm.unexpected, lost=warm.lost)
    go_on = _for(seconds - warm_up)
    async with _watched(part, watch, seconds - warm_up):
        await asyncio.gather(
            clients.run(part.tally, CONNECTIONS, Pace(rate), go_on),
            clients.ping(part.tally, door.ping, 0.5, go_on),
            clients.abuse(part.tally, random, 0.05, go_on),
            _kill_one(door, part, (seconds - warm_up) / 2),
        )
    await _settle(watch, part.descriptors_at_start)
    part.descriptors_at_end = watch.descriptors()
    part.changed = await clients.changed()
    part.samples, part.warm_up = watch.samples, warm_up
    return part


def _for(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


async def _settle(watch: Watch, expected: int | None = None) -> None:
    """Wait until connections that our side has closed are closed on the other side too, and no longer than 15 seconds."""
    until, before = time.monotonic() + 15, -1
    while time.monotonic() < until:
        now = watch.descriptors()
        if now <= expected if expected is not None else now == before:
            return
        before = now
        await asyncio.sleep(0.5)


async def _kill_one(door: Door, part: Part, after: float) -> None:
    if not door.workers:
        return
    await asyncio.sleep(after)
    victim = door.processes()[0]
    part.killed_at = time.monotonic()
    victim.kill()
    print(f"{door.title}: worker {victim.pid} killed", flush=True)
    while time.monotonic() - part.killed_at < RECOVERY_SECONDS:
        await asyncio.sleep(0.1)
        living = {process.pid for process in door.processes()} - {victim.pid}
        if len(living) == door.workers:
            part.recovered = True
            return


@asynccontextmanager
async def _watched(part: Part, watch: Watch, seconds: float) -> AsyncIterator[None]:
    """Looks at the processes now and then, and says how it goes every few seconds."""

    async def look() -> None:
        said = started = time.monotonic()
        while True:
            await asyncio.to_thread(watch.look)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                print(f"{said - started:6.0f} s  {soak_report.progress(part, watch.samples)}", flush=True)
            await asyncio.sleep(max(0.25, min(5.0, seconds / 60)))

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()


@contextmanager
def container(release_dir: Path, folder: Path, signature: Signature) -> Iterator[Door]:
    """The SageMaker container's process over the release that was unpacked into `folder`/model."""
    cores = sorted(os.sched_getaffinity(0))
    server = ours("container", "SageMaker container", read_release(release_dir / RELEASE_FILE), folder, len(cores))
    first = next(make_payloads(signature, folder / "model" / "model.onnx", folder))
    with running(server, first, cores) as it:
        port = int(it.url.rpartition(":")[2].partition("/")[0])
        # As many as there are now: how many it takes is the server's own business.
        workers = len(psutil.Process(it.leader).children())
        yield Door(server.title, port, "/invocations", "/ping", it.leader, workers)


@contextmanager
def function(release_dir: Path, folder: Path) -> Iterator[Door]:
    """The Function's package, built and unpacked below `folder`, in its development host. Raises FerryError, SystemExit."""
    package = folder / "package.zip"
    build_package(release_dir, package, python_version=f"{sys.version_info.major}.{sys.version_info.minor}")
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder / "function")  # our own build, just made
    port, mark, log = free_port(), f"soak-{os.getpid()}-function", folder / "host.log"
    script = ROOT / "ferry" / "functions_host.py"
    command = [sys.executable, "-I", "-S", str(script), "--package", str(folder / "function"), "--port", str(port)]
    # The host has a thread for each connection, and glibc an arena for each of the first of them to fill; Azure's has neither.
    variables = {"PATH": os.environ["PATH"], "MALLOC_ARENA_MAX": "2"}
    process = processes.start(mark, command, variables, folder, log)
    try:
        _wait_for_port(port, process.poll, log)
        yield Door("Azure Function, development host", port, "/api/classify", "/api/health", process.pid, 0)
    finally:
        end(process.pid, mark)


def _wait_for_port(port: int, ended: Callable[[], int | None], log: Path) -> None:
    started = time.monotonic()
    while processes.port_owner(port) is None:
        if ended() is not None or time.monotonic() - started > START_SECONDS:
            raise SystemExit(f"nothing listens on {LOOPBACK}:{port}\n{processes.log_tail(log)}")
        processes.pause(started)


def run(release_dir: Path, minutes: float) -> list[Part]:
    with tempfile.TemporaryDirectory(prefix="ferry-soak-") as scratch:
        folder = Path(scratch)
        (folder / "model").mkdir()
        signature = unpack(release_dir, folder / "model").description.signature
        if len(signature.input.shape) != 4:
            raise ReleaseError(f"{release_dir}: a model of tables; the soak sends images")
        with container(release_dir, folder, signature) as door:
            parts = [asyncio.run(soak(door, signature, minutes * 60 * 0.75))]
        with function(release_dir, folder) as door:
            return [*parts, asyncio.run(soak(door, signature, minutes * 60 * 0.25))]


def main() -> int:
    parser = arguments("bench.soak", __doc__ or "")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"for all of it, {MINUTES:g} where it is not given"
    )
    given = parser.parse_args()
    minutes = min(given.minutes, QUICK_MINUTES) if given.quick else given.minutes
    if not 0 < minutes < 60 * 24 * 7:
        parser.error(f"--minutes: found {given.minutes:g}; allowed: more than 0, and less than a week")
    try:
        parts = run(given.release_dir, minutes)
    except (ReleaseError, ModelInvalid, FerryError, FileNotFoundError) as error:
        print(f"{error}\n`make demo` makes a release; another one: python -m bench.soak RELEASE_DIR", file=sys.stderr)
        return 2
    return soak_report.write(parts)


if __name__ == "__main__":
    interruption.raise_once()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(interruption.EXIT_CODE)
