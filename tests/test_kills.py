"""Any `ferry` command can be killed at any moment and run again: nothing is lost, and the end is that of a run nobody disturbed.

Each command runs as a process of its own, once to its end, then again and again in a fresh environment, ended right before one
of its effects (tests/kill_points), or at some moment, and run again. Which is drawn with a fixed seed; `make test-slow` draws
more of them.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from botocore.exceptions import EndpointConnectionError

from ferry import local, processes
from ferry.doors import HttpDoor, Question, doors, request_body
from ferry.errors import FerryError
from ferry.locking import exclusively
from ferry.release import current_release, make_release
from ferry.steps.job import alone, mark
from infra.settings import DATASETS_PREFIX, ROOT, Settings, load_settings
from model_code.inference.contract import parse_model_json
from tests.emulated_training import Account, deploy, emulated, fresh_account, upload_images
from tests.idx_files import digit_like, idx
from tests.kills import Ended, run
from tests.local_settings import write_settings
from tests.scripted_server import Server, scripted
from tests.serving_models import write_artifact
from tests.stack_fixtures import dev_settings
from tests.stack_fixtures import make_release as make_cloud_release
from tests.test_batch import deployed
from tests.test_destroy import TERRAFORM, _stand, needs_terraform, write_stack
from tests.test_image import _ENGINE
from tests.test_publish import ACCEPTED, PUBLISH, STATUS, deployment, write_package
from tests.test_registry import register

Check = Callable[[Account, Path], None]
# What a command that cleans up after SIGTERM ends with, and what the system makes of it for one that has nothing to clean up.
ENDS: dict[int, tuple[int, ...]] = {signal.SIGINT: (130,), signal.SIGTERM: (130, -signal.SIGTERM)}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("kills")) as settings:
        yield settings


def account_of(emulator: Settings, folder: Path) -> Account:
    """An environment of its own in the running emulator."""
    return fresh_account(emulator, folder)


def no_checks(account: Account, folder: Path) -> None:
    return None


@dataclass(frozen=True)
class Command:
    """A command line, what has to be there before it, and what has to hold after it was killed and before it runs again."""

    arguments: Callable[[Path], list[str]]
    prepare: Check = no_checks
    invariant: Check = no_checks
    account: Callable[[Settings, Path], Account] = account_of
    variables: Callable[[Path], Mapping[str, str]] = field(default=lambda folder: {})
    cleanup: Check = no_checks
    kills: int = 8  # in test-slow


# What each command works on, and what of it a kill must leave whole.


def write_images(account: Account, folder: Path) -> None:
    (folder / "images").mkdir()
    for prefix, count in (("train", 24), ("t10k", 12)):
        images, labels = digit_like(count, seed=count)
        (folder / "images" / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / "images" / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))


def whole_data(account: Account, folder: Path) -> None:
    """What is announced or named as the newest has all of its files."""
    s3, settings = account.client("s3"), account.settings

    def read(key: str) -> bytes:
        return bytes(s3.get_object(Bucket=settings.data_bucket, Key=key)["Body"].read())

    keys = account.keys(settings.data_bucket)
    for key in keys:
        if key == settings.dataset_manifest or key.startswith(settings.dataset_versions):
            version = settings.dataset_version(hashlib.sha256(read(key)).hexdigest())
            for entry in json.loads(read(key))["files"]:
                content = read(f"{DATASETS_PREFIX}/{version}/{entry['path']}")
                assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["size"])
            assert key == settings.dataset_manifest or settings.dataset_manifest in keys


def release_one(account: Account, folder: Path) -> None:
    """The earlier release, and the artifact of the next one."""
    write_artifact(folder / "first.tar.gz", seed=1)
    make_release(account.settings, str(folder / "first.tar.gz"), silent)
    write_artifact(folder / "second.tar.gz", seed=2)


def release_two(account: Account, folder: Path) -> None:
    release_one(account, folder)
    release, _ = current_release(account.settings)
    make_release(account.settings, str(folder / "second.tar.gz"), silent)
    (folder / "earlier").write_text(release.release_id)


def register_one(account: Account, folder: Path) -> None:
    release_one(account, folder)
    register(account, folder, seed=2)


def whole_release(account: Account, folder: Path) -> None:
    """There is a current release, and every digest of it holds; so does that of every stored one."""
    settings, s3 = account.settings, account.client("s3")
    current_release(settings)
    for key in account.keys(settings.artifact_bucket, "releases/"):
        if key.endswith("/release.json"):
            stored = json.loads(s3.get_object(Bucket=settings.artifact_bucket, Key=key)["Body"].read())
            archive = s3.get_object(
                Bucket=settings.artifact_bucket,
                Key=key.replace("release.json", "model.tar.gz"),
                VersionId=stored["archive"]["version_id"],
            )["Body"].read()
            assert hashlib.sha256(archive).hexdigest() == stored["archive"]["sha256"]


def own_ports(emulator: Settings, folder: Path) -> Account:
    """An environment apart from the shared emulator: `ferry local up` starts its own."""
    path = write_settings(folder, name="t" + hashlib.sha256(str(folder).encode()).hexdigest()[:8])
    return Account(load_settings(str(path)), path)


def emulator_up(account: Account, folder: Path) -> None:
    local.up(account.settings, ["emulator"], silent)


def all_down(account: Account, folder: Path) -> None:
    local.down(account.settings, silent)
    assert local.status(account.settings)["pids"] == {"emulator": [], "sagemaker": [], "azure": []}
    local.refuse_busy_ports(account.settings)


def fake_engine(account: Account, folder: Path) -> None:
    """An engine that keeps what it built; test_image.py has it."""
    (folder / "engine").mkdir()
    (folder / "bin").mkdir()
    path = folder / "bin" / "docker"
    path.write_text(_ENGINE.format(python=sys.executable, state=str(folder / "engine"), url="http://127.0.0.1:9"))
    path.chmod(0o755)


def inputs_of_a_job(account: Account, folder: Path) -> None:
    inputs = np.random.default_rng(3).normal(size=(3, 1, 28, 28)).astype(np.float32)
    (folder / "in").mkdir()
    for name, part in (("a", inputs[:2]), ("b", inputs[2:])):
        (folder / "in" / f"{name}.json").write_text(json.dumps({"data": part.tolist(), "probabilities": True}))


def no_buckets(emulator: Settings, folder: Path) -> Account:
    """An environment in the running emulator before anything is deployed."""
    path = write_settings(folder, name="t" + hashlib.sha256(str(folder).encode()).hexdigest()[:8])
    assert emulator.local is not None
    text = path.read_text().splitlines()
    port = f"emulator_port = {emulator.local.emulator_port}"
    path.write_text("\n".join(port if line.startswith("emulator_port") else line for line in text) + "\n")
    return Account(load_settings(str(path)), path)


def small_stacks(account: Account, folder: Path) -> None:
    _stand(account.settings)


def both_doors(account: Account, folder: Path) -> None:
    release_one(account, folder)
    local.up(account.settings, ["sagemaker", "azure"], silent)
    (folder / "one.json").write_text(json.dumps({"data": np.zeros((1, 1, 28, 28)).tolist()}))


def doors_of_an_earlier_release(account: Account, folder: Path) -> None:
    both_doors(account, folder)
    make_release(account.settings, str(folder / "second.tar.gz"), silent)


def doors_down(account: Account, folder: Path) -> None:
    local.down(account.settings, silent)


def images_and_pipeline(account: Account, folder: Path) -> None:
    upload_images(account)
    deploy(account)


def no_job_left(account: Account, folder: Path) -> None:
    assert processes.find(mark(account.settings)) == []


COMMANDS = {
    "data upload": Command(
        lambda folder: ["data", "upload", "--data", str(folder / "images")], write_images, whole_data
    ),
    "release": Command(lambda folder: ["release", str(folder / "second.tar.gz")], release_one, whole_release),
    "approve": Command(lambda folder: ["approve", "1", "--reason", "good"], register_one, whole_release),
    "reject": Command(lambda folder: ["reject", "1", "--reason", "bad"], register_one, whole_release),
    "rollback": Command(lambda folder: ["rollback", (folder / "earlier").read_text()], release_two, whole_release),
    "package": Command(lambda folder: ["package"], release_one, whole_release),
    "image build": Command(
        lambda folder: ["image", "build"],
        fake_engine,
        variables=lambda folder: {"PATH": str(folder / "bin")},
    ),
    "batch": Command(
        lambda folder: ["batch", str(folder / "in"), "--job", "a-job", "--output", str(folder / "out")],
        inputs_of_a_job,
        account=deployed,
        cleanup=no_job_left,
    ),
    "local up": Command(lambda folder: ["local", "up", "emulator"], account=own_ports, cleanup=all_down),
    "local down": Command(lambda folder: ["local", "down"], emulator_up, account=own_ports, cleanup=all_down),
    "local up with another release": Command(
        lambda folder: ["local", "up", "sagemaker", "azure"],
        doors_of_an_earlier_release,
        whole_release,
        cleanup=doors_down,
        kills=4,
    ),
    "train --local": Command(
        lambda folder: ["train", "--local", "--parameter", "Gate=0.1"],
        images_and_pipeline,
        whole_data,
        cleanup=no_job_left,
        kills=6,
    ),
    "destroy aws": Command(
        lambda folder: ["destroy", "aws", "--data", "--yes"], small_stacks, account=no_buckets, kills=4
    ),
    "verify": Command(lambda folder: ["verify"], both_doors, whole_release, cleanup=doors_down, kills=2),
    "invoke": Command(
        lambda folder: ["invoke", str(folder / "one.json")], both_doors, whole_release, cleanup=doors_down, kills=2
    ),
}
# Of what a command leaves on this machine, what is its result: no logs, no locks, no records of what was tried.
_RESULTS = ("release/*", "package/*.zip", "data/*/*/*", "batch/*/request.json")


def result(account: Account, folder: Path, ended: Ended) -> dict[str, str]:
    """What a command came to, where its environment's name, its folder, and what the emulator draws are left out."""
    settings = account.settings
    served = local.status(settings)["release_id"]
    found: dict[str, bytes] = {"": str(ended.code).encode(), "served": str(served).encode()}
    for bucket in _buckets(account):
        for key in account.keys(bucket):
            found[f"{bucket}/{key}"] = account.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    for pattern in _RESULTS:
        for path in settings.build_path.glob(pattern):
            if path.is_file() and not path.name.startswith("."):
                found |= _contents(str(path.relative_to(settings.build_path)), path)
    for record in settings.build_path.glob("training/*/execution.json"):
        if json.loads(record.read_bytes())["status"] == "Succeeded":
            found["trained"] = (record.parent / "Train" / "model" / "model.onnx").read_bytes()
    for path in (folder / "out").rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    if not _buckets(account):
        running = local.status(settings)
        found["emulator"] = str(running["emulator"] is not None).encode()
    return {
        _anonymous(name, account, folder): hashlib.sha256(_plain(name, content, account, folder)).hexdigest()
        for name, content in found.items()
        if "/training/" not in name and "/local/" not in name
    }


def _contents(name: str, path: Path) -> dict[str, bytes]:
    """A file, or what a zip holds: a package has the release in it, whose VersionId the emulator draws."""
    if path.suffix != ".zip":
        return {name: path.read_bytes()}
    with zipfile.ZipFile(path) as archive:
        return {f"{name}/{member}": archive.read(member) for member in archive.namelist()}


def _buckets(account: Account) -> list[str]:
    try:
        listed = account.client("s3").list_buckets()["Buckets"]
    except EndpointConnectionError:
        return []
    own = (account.settings.data_bucket, account.settings.artifact_bucket)
    return [each["Name"] for each in listed if each["Name"] in own]


def _plain(name: str, content: bytes, account: Account, folder: Path) -> bytes:
    """Text without what belongs to one environment; anything else as it is."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    if name.endswith("release.json"):
        document = json.loads(text)
        document["archive"]["version_id"] = ""
        text = json.dumps(document)
    return _anonymous(text, account, folder).encode()


def _anonymous(text: str, account: Account, folder: Path) -> str:
    return text.replace(str(folder), "FOLDER").replace(account.settings.environment, "ENVIRONMENT")


@dataclass(frozen=True)
class Undisturbed:
    """A command that nobody killed: its effects, how long it took, and what it came to."""

    effects: list[str]
    seconds: float
    result: dict[str, str]


_undisturbed: dict[str, Undisturbed] = {}


def undisturbed(name: str, emulator: Settings, folder: Path) -> Undisturbed:
    """Run a command once for all tests."""
    if name not in _undisturbed:
        _undisturbed[name] = _run_undisturbed(name, emulator, folder)
    return _undisturbed[name]


def _run_undisturbed(name: str, emulator: Settings, folder: Path) -> Undisturbed:
    command = COMMANDS[name]
    folder.mkdir()
    account = _prepared(command, emulator, folder)
    ended = run(account.settings_path, command.arguments(folder), folder, variables=command.variables(folder))
    assert ended.code == 0, ended.printed + ended.errors
    found = result(account, folder, ended)
    command.cleanup(account, folder)
    return Undisturbed(ended.effects, ended.seconds, found)


def _prepared(command: Command, emulator: Settings, folder: Path) -> Account:
    account = command.account(emulator, folder)
    command.prepare(account, folder)
    return account


def kill_and_repeat(name: str, whole: Undisturbed, emulator: Settings, folder: Path, **how: Any) -> Ended:
    """End the command as `how` tells `run`, look at what is left, run it again; returns how it ended the first time."""
    command = COMMANDS[name]
    folder.mkdir()
    account = _prepared(command, emulator, folder)
    variables = command.variables(folder)
    killed = run(account.settings_path, command.arguments(folder), folder, variables=variables, **how)
    where = f"{name}, {how}, {len(killed.effects)} of {len(whole.effects)}: {killed.effects[-1:]}"
    try:
        command.invariant(account, folder)
        again = run(account.settings_path, command.arguments(folder), folder, variables=variables)
        assert again.code == 0, f"{where}\n{again.printed}{again.errors}"
        assert result(account, folder, again) == whole.result, where
        command.invariant(account, folder)
    finally:
        command.cleanup(account, folder)
    return killed


def drawn(name: str, effects: list[str], count: int) -> list[int]:
    """Effects of a command, by number, spread over all of it: one of each of `count` parts."""
    chosen, size = random.Random(name), len(effects) / count
    return [min(len(effects), 1 + int(size * (part + chosen.random()))) for part in range(count)]


def moments(name: str, seconds: float, count: int) -> list[float]:
    """Seconds after the start of something that takes `seconds`, spread over all of it like `drawn`."""
    chosen = random.Random(f"{name}, moments")
    return [seconds * (part + chosen.random()) / count for part in range(count)]


def ended_at_moments(name: str, count: int, emulator: Settings, folder: Path) -> None:
    """End a command at so many moments, with one signal after the other, to the process alone and to its group in turn."""
    whole = undisturbed(name, emulator, folder / "whole")
    for turn, after in enumerate(moments(name, whole.seconds, count)):
        number, whom = SIGNALS[turn % len(SIGNALS)], ("self", "group")[turn // len(SIGNALS) % 2]
        ended = kill_and_repeat(name, whole, emulator, folder / f"{turn}", after=after, number=number, whom=whom)
        where = f"{name}, {number.name} after {after:.2f} s of {whole.seconds:.2f}: {ended.code}\n{ended.errors}"
        # It may have come to its end before; and before its first line has run, it is the interpreter that ends.
        assert ended.code in (0, -number, *ENDS.get(number, ())), where
        assert "Traceback" not in ended.errors or ended.code == -number, where


@pytest.mark.parametrize("name", ["data upload"])
def test_d5_a_command_that_was_killed_is_run_again(name: str, emulator: Settings, tmp_path: Path) -> None:
    whole = undisturbed(name, emulator, tmp_path / "whole")
    for before in drawn(name, whole.effects, 1):
        killed = kill_and_repeat(name, whole, emulator, tmp_path / str(before), before=before)
        assert killed.code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_d5_a_command_that_was_killed_at_any_of_its_effects_is_run_again(
    name: str, emulator: Settings, tmp_path: Path
) -> None:
    whole = undisturbed(name, emulator, tmp_path / "whole")
    for turn, before in enumerate(drawn(name, whole.effects, COMMANDS[name].kills)):
        # In turn the process alone, and with all of its group that it did not start in a session of its own.
        whom = ("self", "group")[turn % 2]
        killed = kill_and_repeat(name, whole, emulator, tmp_path / f"{turn}", before=before, whom=whom)
        # How often a command looks whether something has ended is up to the machine.
        assert killed.code == -signal.SIGKILL or len(killed.effects) < before


def interrupted(name: str, number: signal.Signals, emulator: Settings, folder: Path, parts: int) -> None:
    whole = undisturbed(name, emulator, folder / "whole")
    # The first effects are those of the interpreter; what a command does comes later.
    for turn, before in enumerate(drawn(f"{name}{number}", whole.effects, parts)):
        ended = kill_and_repeat(name, whole, emulator, folder / f"{turn}", before=before, number=number)
        where = f"{name}, {number.name} before {before} of {len(whole.effects)}: {ended.effects[-1:]}\n{ended.errors}"
        # How often a command looks whether something has begun or ended is up to the machine: it may be done before its turn.
        done = ended.code == 0 and len(ended.effects) < before
        assert done or ended.code in ENDS[number], where
        if ended.code == 130:
            assert "interrupted; the same command can be run again" in ended.errors.splitlines()[-1], where
        assert "Traceback" not in ended.errors, where


def test_d5_what_is_ended_carries_the_mark_of_its_environment_and_is_no_stranger(tmp_path: Path) -> None:
    """The mark is in a process's own environment, so a process id that the system hands out again leads to nobody."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    names = [f"{tmp_path}:{name}:emulator" for name in ("one", "two")]
    started = [processes.start(name, sleeping, os.environ, tmp_path, tmp_path / "log") for name in names]
    stranger = subprocess.Popen(sleeping, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not all(processes.find(name) for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert processes.stop(names[0], 60)
        assert processes.find(names[0]) == []
        assert not processes.stop(names[0], 60)
        assert [each.pid for each in processes.find(names[1])] == [started[1].pid]
        assert stranger.poll() is None
    finally:
        for each in (*started, stranger):
            each.kill()
            each.wait()


def test_d5_what_has_ended_and_nobody_collected_is_not_waited_for(tmp_path: Path) -> None:
    """The parent is whoever started it, and may have other things to do; until then it stays in the table of processes."""
    name = f"{tmp_path}:emulator"
    start = (
        "import os, sys, time; from pathlib import Path; from ferry import processes\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "processes.start(sys.argv[1], command, os.environ, Path.cwd(), Path('log'))\n"
        "time.sleep(30)"
    )
    parent = subprocess.Popen([sys.executable, "-c", start, name], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    try:
        while not (found := processes.find(name)):
            assert parent.poll() is None
            time.sleep(0.05)
        assert processes.stop(name, 600)
        assert [each.status() for each in found] == ["zombie"]
        assert parent.poll() is None
    finally:
        parent.kill()
        parent.wait()


def test_d5_a_job_that_a_killed_command_left_is_ended_by_down_and_one_of_a_living_command_is_not(
    tmp_path: Path,
) -> None:
    settings = own_ports(load_settings(), tmp_path).settings
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    job = processes.start(mark(settings), sleeping, os.environ, tmp_path, tmp_path / "log")
    try:
        deadline = time.monotonic() + 60
        while not processes.find(mark(settings)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with exclusively(settings.build_path / "training" / "lock", "ferry batch"):
            local.down(settings, silent)
            assert [each.pid for each in processes.find(mark(settings))] == [job.pid]
            with (
                pytest.raises(FerryError, match="another `ferry train --local or ferry batch` command is at work"),
                alone(settings),
            ):
                pass
        local.down(settings, silent)
        assert processes.find(mark(settings)) == []
    finally:
        job.kill()
        job.wait()


_PUBLISH_SCRIPT = """
import sys
from pathlib import Path
from ferry.publish import upload
from tests.scripted_server import SignedIn
upload(Path(sys.argv[1]), sys.argv[2], SignedIn(), print)
"""


def _publish(folder: Path, before: int, number: signal.Signals = signal.SIGKILL) -> tuple[Ended, Server, bytes]:
    """`ferry publish azure` against a deployment service that this test plays, ended before its effect `before`, then again."""
    folder.mkdir()
    package = write_package(folder, make_cloud_release(dev_settings()))
    program: Sequence[str] = [sys.executable, "-c", _PUBLISH_SCRIPT]
    with scripted({PUBLISH: [ACCEPTED], STATUS: [deployment(2), deployment(4)]}) as server:
        first = run(folder, [str(package), server.url], folder, before=before, number=number, program=program)
        if before:
            again = run(folder, [str(package), server.url], folder, program=program)
            assert again.code == 0, again.errors
    return first, server, package.read_bytes()


@pytest.mark.slow
def test_d5_an_upload_to_azure_that_was_killed_is_run_again_and_arrives_whole(tmp_path: Path) -> None:
    whole, server, content = _publish(tmp_path / "whole", 0)
    assert whole.code == 0, whole.errors
    for before in range(1, len(whole.effects) + 1):
        number = SIGNALS[before % len(SIGNALS)]
        ended, server, content = _publish(tmp_path / str(before), before, number)
        assert ended.code == -number
        assert [request.body for request in server.asked if request.method == "POST"][-1] == content


def _destroy_azure(folder: Path, **how: Any) -> Ended:
    """`ferry destroy azure` over a small stack in the state of a real Terraform, applied where there is none yet."""
    path = folder / "trial.toml"
    output = folder / "cdktf.out"
    if not path.exists():
        folder.mkdir()
        text = (ROOT / "config" / "dev.toml").read_text()
        path.write_text(f'environment = "dev"\nbuild_dir = "{folder / "build"}"\n{text}')
        stack = output / "stacks" / load_settings(str(path)).stack("azure")
        write_stack(stack)
        for arguments in (["init"], ["apply", "-auto-approve"]):
            assert TERRAFORM is not None
            subprocess.run([TERRAFORM, *arguments, "-input=false"], cwd=stack, check=True, capture_output=True)
    variables = {"CDKTF_OUTDIR": str(output)}
    return run(path, ["destroy", "azure", "--yes"], folder, variables=variables, **how)


@pytest.mark.slow
@needs_terraform
def test_d5_d18_a_destruction_on_azure_that_was_ended_at_any_moment_is_run_again(tmp_path: Path) -> None:
    whole = _destroy_azure(tmp_path / "whole")
    assert whole.code == 0, whole.errors
    effects, times = drawn("destroy azure", whole.effects, 6), moments("destroy azure", whole.seconds, 6)
    ways: list[dict[str, Any]] = [*({"before": each} for each in effects), *({"after": each} for each in times)]
    for turn, how in enumerate(ways):
        number, folder = SIGNALS[turn % len(SIGNALS)], tmp_path / str(turn)
        ended = _destroy_azure(folder, number=number, **how)
        where = f"{number.name} {how} of {whole.seconds:.1f} s: {ended.effects[-1:]}\n{ended.errors}"
        assert ended.code in (0, -number, *ENDS.get(number, ())), where
        again = _destroy_azure(folder)
        assert again.code == 0, f"{where}\n{again.printed}{again.errors}"
        state = json.loads((folder / "cdktf.out" / "stacks" / "trial.tfstate").read_bytes())
        assert state["resources"] == [], where


def demo(folder: Path, **how: Any) -> tuple[Settings, Ended]:
    """`ferry demo` in an environment below `folder`, which is made the first time."""
    path = folder / "trial.toml"
    if not path.exists():
        write_settings(folder, digits_epochs=6)
    arguments = ["demo", "--data", "digits", "--output", str(folder / "demo")]
    return load_settings(str(path)), run(path, arguments, folder, **how)


def demo_report(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "demo" / "report.json").read_bytes())
    return {name: document[name] for name in ("accuracy", "aws", "release_id", "problems", "examples")}


@pytest.fixture(scope="module")
def whole_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, dict[str, Any]]:
    """A demo that nobody ended, and its report."""
    folder = tmp_path_factory.mktemp("demo")
    _, ended = demo(folder)
    assert ended.code == 0, ended.printed + ended.errors
    return ended, demo_report(folder)


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(9))
def test_d5_a_demo_that_was_ended_at_any_moment_is_run_again(
    turn: int, whole_demo: tuple[Ended, dict[str, Any]], tmp_path: Path
) -> None:
    whole, report = whole_demo
    number = SIGNALS[turn % len(SIGNALS)]
    how: dict[str, Any] = {"before": drawn("demo", whole.effects, 9)[turn]}
    if turn % 2:
        how = {"after": moments("demo", whole.seconds, 9)[turn]}
    settings, ended = demo(tmp_path, number=number, **how)
    where = f"{number.name} {how} of {whole.seconds:.1f} s, {len(ended.effects)} of {len(whole.effects)}: {ended.effects[-1:]}"
    try:
        assert ended.code in (0, -number, *ENDS.get(number, ())), f"{where}\n{ended.errors}"
        if ended.code == 130:
            assert "interrupted; the same command can be run again" in ended.errors.splitlines()[-1], where
            assert local.status(settings)["pids"] == {"emulator": [], "sagemaker": [], "azure": []}, where
        _, again = demo(tmp_path)
        assert again.code == 0, f"{where}\n{again.printed}{again.errors}"
        assert demo_report(tmp_path) == report, where
    finally:
        all_down(Account(settings, tmp_path / "trial.toml"), tmp_path)


def ask_the_doors(settings: Settings, body: bytes) -> list[bytes]:
    """What both doors answer; each has to be healthy within the two seconds that SageMaker gives /ping."""
    answers = []
    for door in doors(settings):
        assert isinstance(door, HttpDoor)
        assert urllib3.request("GET", door.health, timeout=2, retries=False).status == 200
        answers.append(door.ask(Question(body)).content)
    return answers


def doors_stay(names: Sequence[str], parts: int, emulator: Settings, folder: Path) -> None:
    """End commands that make or pack another release while both doors serve; `parts` times each."""
    account = account_of(emulator, folder)
    both_doors(account, folder)
    try:
        served, members = current_release(account.settings)
        body = request_body(parse_model_json(members["model.json"]).signature.golden.inputs)
        before = ask_the_doors(account.settings, body)
        commands = {
            "release": ["release", str(folder / "second.tar.gz")],
            "package": ["package"],
            "rollback": ["rollback", served.release_id],
            "local up": ["local", "up", "sagemaker", "azure"],
        }
        for arguments in (commands[name] for name in names):
            for turn, after in enumerate(moments(arguments[0], 2, parts)):
                number = SIGNALS[turn % len(SIGNALS)]
                run(account.settings_path, arguments, folder, after=after, number=number, whom="group")
                assert ask_the_doors(account.settings, body) == before, (
                    f"{arguments}, {number.name} after {after:.2f} s"
                )
                whole_release(account, folder)
            assert run(account.settings_path, arguments, folder).code == 0, arguments
    finally:
        doors_down(account, folder)


@pytest.mark.slow
def test_d5_doors_go_on_answering_bit_for_bit_while_commands_are_ended(emulator: Settings, tmp_path: Path) -> None:
    doors_stay(["release"], 1, emulator, tmp_path)


@pytest.mark.slow
def test_d5_doors_go_on_answering_bit_for_bit_at_any_moment(emulator: Settings, tmp_path: Path) -> None:
    doors_stay(["release", "package", "rollback", "local up"], 6, emulator, tmp_path)


def test_d5_an_interrupted_command_ends_with_130_and_says_what_is_next(emulator: Settings, tmp_path: Path) -> None:
    interrupted("data upload", signal.SIGINT, emulator, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_d5_a_command_that_was_interrupted_at_any_of_its_effects_is_run_again(
    name: str, number: signal.Signals, emulator: Settings, tmp_path: Path
) -> None:
    interrupted(name, number, emulator, tmp_path, 3)


@pytest.mark.slow
def test_d5_a_command_that_was_ended_at_a_moment_is_run_again(emulator: Settings, tmp_path: Path) -> None:
    ended_at_moments("data upload", 1, emulator, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_d5_a_command_that_was_ended_at_any_moment_is_run_again(name: str, emulator: Settings, tmp_path: Path) -> None:
    ended_at_moments(name, 6, emulator, tmp_path)
