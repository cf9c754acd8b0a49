"""A release under faults: publishers at once, kills, full disks, objects that were exchanged, one cloud that is away.

In every one of them the release that was there stays whole, and the same command brings everything to its end later.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from moto.s3.responses import S3Response

from ferry import model_check
from ferry import release as release_module
from ferry.archive import read_archive, write_archive
from ferry.errors import FerryError, Refused
from ferry.release import Origin, current_release, make_release
from ferry.release_folder import replace_files
from ferry.rollback import list_releases, rollback
from infra.release import MAX_RELEASE_BYTES, Release, ReleaseError, parse_release, read_release
from infra.settings import ROOT, Settings, load_settings
from model_code.inference.errors import ModelInvalid
from model_code.inference.predictor import Predictor
from tests import kills
from tests.emulated_training import Account, emulated, ferry, fresh_account
from tests.local_settings import free_ports
from tests.scripted_server import Reply, Server, scripted
from tests.serving_models import describe, log_probabilities, onnx_bytes, write_artifact
from tests.stack_fixtures import dev_settings
from tests.stack_fixtures import make_release as example_release

EXECUTION = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/modelferry-mnist/execution/"


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("faults")) as settings:
        yield settings


@pytest.fixture(autouse=True)
def _trial_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trial of a model, without the second that a process under limits takes: what is shown here comes after it."""

    def probe(folder: Path, origin: str) -> None:
        try:
            model_check.check_model((folder / "model.onnx").read_bytes(), origin)
            Predictor.load(folder)
        except ModelInvalid as error:
            raise FerryError(f"MODEL_INVALID {origin}: {error}") from error

    monkeypatch.setattr(release_module, "probe_model", probe)


@pytest.fixture
def account(emulator: Settings, tmp_path: Path) -> Account:
    return fresh_account(emulator, tmp_path)


def artifact(folder: Path, seed: int = 0, *, labels: str | None = None, **fields: Any) -> str:
    """A model.tar.gz of the tiny model of this seed, with other fields in its model.json."""
    path = folder / f"{seed}-{labels or ''}.tar.gz"
    write_artifact(path, seed=seed)
    members = read_archive(path.read_bytes(), "a")
    document = json.loads(members["model.json"]) | fields
    if labels:
        document["signature"]["labels"] = [f"{labels} {number}" for number in range(10)]
    path.write_bytes(write_archive(members | {"model.json": json.dumps(document).encode()}))
    return str(path)


def versions(account: Account) -> dict[str, list[str]]:
    """Every version of every object in the artifacts bucket."""
    found: dict[str, list[str]] = {}
    listing = account.client("s3").list_object_versions(Bucket=account.settings.artifact_bucket)
    for entry in listing.get("Versions", []):
        found.setdefault(entry["Key"], []).append(entry["VersionId"])
    return found


def put(account: Account, key: str, body: bytes) -> None:
    account.client("s3").put_object(Bucket=account.settings.artifact_bucket, Key=key, Body=body)


def left_behind(settings: Settings) -> list[str]:
    """What lies beside the current release and is no part of it."""
    folder = settings.release_path.parent
    current = os.readlink(folder / "current")
    return sorted({path.name for path in folder.iterdir()} - {"release.json", "model.tar.gz", "current", current})


# Exchanged objects and lying manifests


def test_m12_an_archive_that_was_exchanged_in_the_bucket_is_not_the_release(account: Account, tmp_path: Path) -> None:
    path = artifact(tmp_path)
    release = make_release(account.settings, path, silent)
    released = current_release(account.settings)[1]
    key = f"releases/{release.release_id}/model.tar.gz"
    lie = json.loads(released["model.json"]) | {"source_revision": "exchanged"}
    put(account, key, write_archive(released | {"model.json": json.dumps(lie).encode()}))
    assert make_release(account.settings, path, silent) == release
    assert current_release(account.settings) == (release, released)
    put(account, key, b"other bytes")
    assert rollback(account.settings, release.release_id, silent) == release
    assert current_release(account.settings) == (release, released)


def test_m12_an_artifact_is_read_once_and_what_was_checked_is_what_is_stored(account: Account, tmp_path: Path) -> None:
    path = Path(artifact(tmp_path))

    def exchange(line: str) -> None:
        if line.startswith("fetched"):
            path.write_bytes(b"something else")

    release = make_release(account.settings, str(path), exchange)
    assert release.onnx.sha256 == hashlib.sha256(onnx_bytes()).hexdigest()
    assert current_release(account.settings)[0] == release


def test_m12_a_version_that_is_gone_is_named(account: Account, tmp_path: Path) -> None:
    release = make_release(account.settings, artifact(tmp_path), silent)
    account.client("s3").delete_object(
        Bucket=account.settings.artifact_bucket,
        Key=f"releases/{release.release_id}/model.tar.gz",
        VersionId=release.archive.version_id,
    )
    with pytest.raises(FerryError, match=rf"ARTIFACT_MISSING {release.archive.uri}, version .*nothing was switched"):
        rollback(account.settings, release.release_id, silent)
    assert current_release(account.settings)[0] == release


@pytest.mark.parametrize(
    "edit", [str.upper, lambda text: text[:32], lambda text: "md5:" + text[:32], lambda _: "", lambda _: None]
)
def test_m11_a_digest_that_is_none_is_refused_by_its_pointer(edit: Callable[[str], Any]) -> None:
    for part in ("archive", "onnx", "model_json"):
        document = json.loads(example_release(dev_settings()).to_bytes())
        document[part]["sha256"] = edit(document[part]["sha256"])
        with pytest.raises(ReleaseError, match=rf"^release\.json: /{part}/sha256: "):
            parse_release(json.dumps(document).encode(), "release.json")
        del document[part]["sha256"]
        with pytest.raises(ReleaseError, match=rf"^release\.json: /{part}/sha256: Field required"):
            parse_release(json.dumps(document).encode(), "release.json")


@pytest.mark.parametrize("part", ["archive", "onnx", "model_json"])
def test_m11_bytes_that_do_not_have_the_digest_of_the_manifest_are_not_used(
    account: Account, tmp_path: Path, part: str
) -> None:
    release = make_release(account.settings, artifact(tmp_path), silent)
    document = json.loads(release.to_bytes())
    document[part]["sha256"] = other = release.release_id[-12:] + "0" * 52  # an id looks at the first 12 digits only
    account.settings.release_path.write_text(json.dumps(document))
    with pytest.raises(
        FerryError, match=rf"DIGEST_MISMATCH .*expected sha256 {other}.*found {getattr(release, part).sha256}"
    ):
        current_release(account.settings)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b" ", b"{", b"nonsense", b"\xff\xfe{}", b"\x00", b"NaN", b"[" * 100_000, b"1" * 5000),
        *(b"{}", b"[]", b"null", b"true", b"0", b'""', b'{"schema_version": 3}', b" " * (MAX_RELEASE_BYTES + 1)),
        b'{"model": 1, "model": 2}',
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_m13_a_manifest_that_is_none_is_refused_with_a_pointer(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"^release\.json: /\S*: "):
        parse_release(raw, "release.json")
    (tmp_path / "release.json").write_bytes(raw)
    with pytest.raises(ReleaseError, match=r"release\.json: /\S*: "):
        read_release(tmp_path / "release.json")
    with pytest.raises(ReleaseError, match="cannot be read"):
        read_release(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("schema_version", 1), ("schema_version", 3), ("schema_version", 2.0), ("schema_version", True),
        ("schema_version", "2"), ("surprise", 1), ("a/b~", 1), ("model", "../mnist"), ("model", None),
        ("dataset", "a\nb"), ("release_id", "mnist-0"), ("archive", []), ("archive/size", "1"), ("archive/size", 0),
        ("archive/size", 1e300), ("archive/size", 10**40), ("archive/version_id", ""), ("archive/version_id", "a b"),
        ("gate/value", float("inf")), ("gate/metric", "loss"), ("gate/surprise", 1), ("metrics", [1]),
        ("metrics/accuracy", "0.99"), ("metrics/accuracy", True), ("metrics/accuracy", None), ("metrics/accuracy", 10**400),
        ("source_revision", "a\0b"), ("source_revision", "\ud800"), ("training_end_time", "yesterday"),
        ("pipeline_execution", "arn:aws:s3:::x"), ("model_package", "x"), ("dataset_manifest_sha256", "A" * 64),
    ],
)  # fmt: skip
def test_m13_a_field_that_a_manifest_may_not_have_is_refused_by_its_pointer(pointer: str, value: Any) -> None:
    document = json.loads(example_release(dev_settings()).to_bytes())
    *way, last = [pointer] if pointer.startswith("a/") else pointer.split("/")
    holder = document
    for step in way:
        holder = holder[step]
    holder[last] = value
    expected = "/a~1b~0" if last == "a/b~" else f"/{pointer}"
    with pytest.raises(ReleaseError) as refusal:
        parse_release(json.dumps(document).encode(), "release.json")
    assert str(refusal.value).startswith(f"release.json: {expected}: ")


def test_m13_a_key_that_stands_twice_is_refused_at_any_depth() -> None:
    raw = example_release(dev_settings()).to_bytes()
    twice = raw.replace(b'"threshold": ', b'"threshold": 0.5, "threshold": ', 1)
    with pytest.raises(ReleaseError, match=r"^release\.json: /gate/threshold: duplicate key 'threshold'$"):
        parse_release(twice, "release.json")


def test_m13_a_thousand_complaints_are_ten_lines() -> None:
    document = {f"k{number}" * 1000: number for number in range(60)}
    with pytest.raises(ReleaseError) as refusal:
        parse_release(json.dumps(document).encode(), "release.json")
    assert len(str(refusal.value).splitlines()) == 11
    assert len(str(refusal.value)) < 3000


def test_m13_what_no_manifest_can_say_is_refused_before_anything_is_stored(account: Account, tmp_path: Path) -> None:
    many = {f"metric {number}": 0.5 for number in range(20_000)} | {"accuracy": 0.99}
    for fields in ({"metrics": many}, {"source_revision": "a\nb"}, {"source_revision": "x" * 300}):
        with pytest.raises(FerryError, match=r"MODEL_INVALID .*: /.*has to fit in a manifest"):
            make_release(account.settings, artifact(tmp_path, **fields), silent)
    assert versions(account) == {}
    make_release(account.settings, artifact(tmp_path), silent)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "../model.tar.gz",
            "/etc/passwd",
            "file:///etc/passwd",
            "https://example.com/model.tar.gz",
            "s3://",
            "s3://b",
        ),
        *("s3://bucket/../x", "s3://bucket/a/../x", "s3://bucket//x", "s3://bucket/a/./x", "s3://BUCKET/x"),
        *(
            "s3://bucket/x?versionId=1",
            "s3://bucket/x#y",
            "s3://user@bucket/x",
            "s3://bucket/x\n",
            "s3://bucket/%2e%2e/x",
        ),
    ],
)
def test_m14_a_place_that_is_no_object_in_s3_is_refused(uri: str) -> None:
    document = json.loads(example_release(dev_settings()).to_bytes())
    document["archive"]["uri"] = uri
    with pytest.raises(ReleaseError, match=r"^release\.json: /archive/uri: "):
        parse_release(json.dumps(document).encode(), "release.json")


def test_m14_a_stored_manifest_names_the_archive_beside_it_and_no_other(account: Account, tmp_path: Path) -> None:
    first = make_release(account.settings, artifact(tmp_path, 0), silent)
    second = make_release(account.settings, artifact(tmp_path, 1), silent)
    key = f"releases/{first.release_id}/release.json"
    elsewhere = first.archive.model_copy(update={"uri": "s3://another-bucket/model.tar.gz"})
    for lie, pointer in (
        (first.model_copy(update={"archive": elsewhere}), "/archive/uri"),
        (second, "/release_id"),
    ):
        put(account, key, lie.to_bytes())
        said: list[str] = []
        with pytest.raises(Refused, match=r"no release .* is stored"):
            rollback(account.settings, first.release_id, said.append)
        assert f"{key}: {pointer}: found " in said[0]
        with pytest.raises(FerryError, match=f"{key}: {pointer}: found "):
            make_release(account.settings, artifact(tmp_path, 0), silent)
        assert current_release(account.settings)[0] == second


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"cos\nsystem\n(S'touch canary'\ntR.", b"PK\x03\x04"], ids=repr)
def test_m21_what_is_no_model_is_no_release_and_never_unpickled(
    account: Account, tmp_path: Path, content: bytes
) -> None:
    members = read_archive(Path(artifact(tmp_path)).read_bytes(), "a")
    document = json.loads(members["model.json"])
    document["onnx"] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content) or 1}
    lie = write_archive({"model.onnx": content, "model.json": json.dumps(document).encode()})
    (tmp_path / "lie.tar.gz").write_bytes(lie)
    with pytest.raises(FerryError, match="MODEL_INVALID"):
        make_release(account.settings, str(tmp_path / "lie.tar.gz"), silent)
    assert versions(account) == {}
    assert not (ROOT / "canary").exists()


# Publishers at once


@pytest.fixture
def atomic_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator looks for the object and writes it in two steps; in S3 the condition and the write are one."""
    one_at_a_time, write = threading.Lock(), S3Response.put_object

    def put_object(self: S3Response) -> Any:
        with one_at_a_time:
            return write(self)

    monkeypatch.setattr(S3Response, "put_object", put_object)


def publish_at_once(accounts: list[Account], artifacts: list[str]) -> list[Release | FerryError]:
    """Release each artifact from a machine of its own; all begin to store at the same moment."""
    together = threading.Barrier(len(artifacts))

    def wait_at_the_gate(line: str) -> None:
        if line.startswith("gate"):
            together.wait(120)

    def publish(account: Account, path: str) -> Release | FerryError:
        try:
            return make_release(
                account.settings,
                path,
                wait_at_the_gate,
                origin=Origin(execution=EXECUTION + Path(account.settings.build_dir).parent.name),
            )
        except FerryError as error:
            return error

    with ThreadPoolExecutor(len(artifacts)) as pool:
        return list(pool.map(publish, accounts, artifacts))


def machines(account: Account, folder: Path, count: int) -> list[Account]:
    """The same environment, with build folders of their own."""
    settings = [
        account.settings.model_copy(update={"build_dir": str(folder / f"machine{number}" / "build")})
        for number in range(count)
    ]
    return [Account(each, account.settings_path) for each in settings]


def test_m23_publishers_of_the_same_model_at_once_all_end_with_the_one_release(
    account: Account, tmp_path: Path, atomic_writes: None
) -> None:
    ended_at = [
        {"dataset": "mnist", "ended_at": f"2026-01-0{day}T00:00:00Z", "hyperparameters": {}} for day in (1, 2, 3)
    ]
    paths = [artifact(tmp_path / str(day), training=training) for day, training in enumerate(ended_at)]
    publishers = machines(account, tmp_path, 3)
    first, *others = publish_at_once(publishers, paths)
    assert isinstance(first, Release), first
    assert others == [first, first]
    assert {key: len(found) for key, found in versions(account).items()} == {
        f"releases/{first.release_id}/model.tar.gz": 1,
        f"releases/{first.release_id}/release.json": 1,
    }
    for publisher in publishers:
        assert current_release(publisher.settings)[0] == first


def test_m23_of_publishers_that_mean_different_things_one_wins_and_the_others_are_told(
    account: Account, tmp_path: Path, atomic_writes: None
) -> None:
    publishers = machines(account, tmp_path, 2)
    for publisher in publishers:
        before = make_release(publisher.settings, artifact(tmp_path, 1), silent)
    ended = publish_at_once(publishers, [artifact(tmp_path, 0, labels=word) for word in ("digit", "number")])
    (winner,) = (each for each in ended if isinstance(each, Release))
    (loser,) = (each for each in ended if isinstance(each, FerryError))
    assert str(loser).startswith("CONFLICT ")
    assert loser.exit_code == 1
    assert all(len(found) == 1 for found in versions(account).values())
    for publisher, each in zip(publishers, ended, strict=True):
        assert current_release(publisher.settings)[0] == (winner if each is winner else before)


def test_m23_publishers_of_different_models_on_one_machine_leave_one_of_them_whole(
    account: Account, tmp_path: Path
) -> None:
    ended = publish_at_once([account] * 2, [artifact(tmp_path, seed) for seed in range(2)])
    assert current_release(account.settings)[0] in ended
    assert left_behind(account.settings) == []
    assert len(list_releases(account.settings, silent)) == 2


def test_m23_a_reader_sees_the_whole_of_one_release_while_others_are_laid_down(tmp_path: Path) -> None:
    pairs = [{"release.json": b"%d" % number, "model.tar.gz": b"%d" % number * 5000} for number in range(3)]
    replace_files(tmp_path, "first", pairs[0])

    def write(pair: dict[str, bytes]) -> None:
        for _ in range(20):
            replace_files(tmp_path, "release", pair)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, pair) for pair in pairs[1:]]
        while not all(writer.done() for writer in writers):
            folder = tmp_path / os.readlink(tmp_path / "current")
            try:
                seen = {name: (folder / name).read_bytes() for name in pairs[0]}
            except FileNotFoundError:
                continue  # replaced meanwhile, and its folder swept away
            assert seen in pairs
    for writer in writers:
        writer.result()


# Full and read-only disks


def limited(limit: int, account: Account, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ferry` where no file may become larger than `limit` KiB."""
    command = [str(Path(sys.executable).with_name("ferry")), "--env", str(account.settings_path), *arguments]
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash", *command],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"TMPDIR": str(folder / "tmp")},
    )  # fmt: skip


@pytest.mark.parametrize(
    "where", [pytest.param("while the model is tried", marks=pytest.mark.slow), "while the release is laid down"]
)
def test_m25_a_disk_that_is_full_leaves_the_release_that_was_there(
    account: Account, tmp_path: Path, where: str
) -> None:
    before = make_release(account.settings, artifact(tmp_path, 0), silent)
    new = artifact(tmp_path, 1, source_revision="x" * 200)
    sizes = {name: len(content) for name, content in read_archive(Path(new).read_bytes(), new).items()}
    tried = max(sizes.values()) // 1024 + 1
    limit = tried - 8 if where == "while the model is tried" else tried
    assert Path(new).stat().st_size > tried * 1024, "the archive is the largest file"
    finished = limited(limit, account, tmp_path, "release", new)
    assert finished.returncode == 1, finished.stderr
    assert re.search(r"File too large; .*(nothing was\s+published|run the same command)", finished.stderr, re.DOTALL)
    assert current_release(account.settings)[0] == before
    assert left_behind(account.settings) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert make_release(account.settings, new, silent) == current_release(account.settings)[0] != before


def test_m25_a_folder_that_cannot_be_is_named(account: Account, tmp_path: Path) -> None:
    account.settings.build_path.mkdir(parents=True)
    account.settings.release_path.parent.write_text("a file")
    with pytest.raises(FerryError, match=rf"{account.settings.release_path.parent}: .* is stored, but the current"):
        make_release(account.settings, artifact(tmp_path), silent)
    account.settings.release_path.parent.unlink()
    make_release(account.settings, artifact(tmp_path), silent)


SMALL_DISK = """
import os, subprocess, sys
from pathlib import Path
from ferry.release_folder import replace_files
from model_code.container.release_archive import lay_down

disk, archive, release_id = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
run = lambda *command: subprocess.run(command, check=True)
run("mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk))
(disk / "model").mkdir()
(disk / "model" / "model.onnx").write_bytes(b"the model before")
replace_files(disk / "release", "old", {"a": b"old", "b": b"old" * 100})
before = {str(path): path.read_bytes() for path in disk.rglob("*") if path.is_file()}
def attempts():
    yield lambda: replace_files(disk / "release", "new", {"a": b"new", "b": b"n" * 2**17})
    (disk / "ballast").write_bytes(bytes(48 * 1024))
    yield lambda: lay_down(archive, disk / "model", release_id)
    (disk / "ballast").unlink()
    run("mount", "-o", "remount,ro", str(disk))
    yield lambda: replace_files(disk / "release", "new", {"a": b"new", "b": b"new"})
    yield lambda: lay_down(archive, disk / "model", release_id)
for attempt in attempts():
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
    ballast = str(disk / "ballast")
    after = {str(path): path.read_bytes() for path in disk.rglob("*") if path.is_file() and str(path) != ballast}
    assert after == before, sorted(after)
run("mount", "-o", "remount,rw,size=1m", str(disk))
replace_files(disk / "release", "new", {"a": b"new", "b": b"n" * 2**17})
assert (disk / "release" / "a").read_bytes() == b"new"
lay_down(archive, disk / "model", release_id)
"""


def test_m25_on_a_full_and_on_a_read_only_disk_everything_stays_as_it_was(tmp_path: Path) -> None:
    own_mounts = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*own_mounts, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of their own")
    (tmp_path / "disk").mkdir()
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(write_archive(read_archive(Path(artifact(tmp_path)).read_bytes(), "a")))
    script = [sys.executable, "-c", SMALL_DISK, str(tmp_path / "disk"), str(archive), describe(onnx_bytes()).release_id]
    finished = subprocess.run([*own_mounts, *script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    said = finished.stdout.splitlines()
    assert said == ["No space left on device"] * 2 + ["Read-only file system"] * 2


def test_m25_files_that_an_earlier_version_left_are_the_release_until_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_bytes(b"old")
    (tmp_path / "model.tar.gz").write_bytes(b"old archive")
    replace_files(tmp_path, "new", {"release.json": b"new", "model.tar.gz": b"new archive"})
    assert (tmp_path / "release.json").read_bytes() == b"new"
    assert (tmp_path / "model.tar.gz").read_bytes() == b"new archive"
    assert len(list(tmp_path.iterdir())) == 4


# Kills

LAY_DOWN = """
import sys
from pathlib import Path
from ferry.release_folder import replace_files
replace_files(Path(sys.argv[1]), sys.argv[2], {"release.json": b"new", "model.tar.gz": b"new archive"})
"""


@pytest.mark.parametrize("migrated", [False, True], ids=["over plain files", "over an earlier release"])
def test_m25_killed_before_any_of_its_steps_the_old_release_or_the_new_one_is_whole(
    tmp_path: Path, migrated: bool
) -> None:
    old, new = (b"old", b"old archive"), (b"new", b"new archive")
    seen = set()
    for before in range(1, 100):
        folder = tmp_path / str(before)
        folder.mkdir()
        if migrated:
            replace_files(folder, "old", {"release.json": old[0], "model.tar.gz": old[1]})
        else:
            (folder / "release.json").write_bytes(old[0])
            (folder / "model.tar.gz").write_bytes(old[1])
        program = (sys.executable, "-c", LAY_DOWN)
        ended = kills.run(tmp_path, [str(folder), "new"], tmp_path, before=before, program=program)
        whole = (folder / "release.json").read_bytes(), (folder / "model.tar.gz").read_bytes()
        assert whole in (old, new), ended.effects[-1]
        seen.add(whole)
        replace_files(folder, "newer", {"release.json": b"newer", "model.tar.gz": b"newer archive"})
        assert len(list(folder.iterdir())) == 4, ended.effects[-1]
        if ended.code == 0:
            break
        assert ended.code == -9, ended.errors
    assert ended.code == 0
    assert seen == {old, new}


def killed(account: Account, folder: Path, new: str, before: int) -> kills.Ended:
    """`ferry release` killed before that effect, once; then the invariant, and the same command to its end."""
    old, _ = current_release(account.settings)
    ended = kills.run(account.settings_path, ["release", new], folder, before=before)
    release, _ = current_release(account.settings)
    seed = Path(new).name.partition("-")[0]
    identifier = describe(onnx_bytes(int(seed))).release_id
    assert release.release_id in (old.release_id, identifier), ended.effects[-1]
    if ended.code == 0:
        assert release.release_id == identifier
    again = ferry(account, "release", new)
    assert again.exit_code == 0, again.output
    assert current_release(account.settings)[0].release_id == identifier
    assert left_behind(account.settings) == []
    assert all(len(found) == 1 for found in versions(account).values())
    return ended


def test_m25_ferry_release_killed_before_its_manifest_is_stored_loses_nothing(account: Account, tmp_path: Path) -> None:
    whole = kills.run(account.settings_path, ["release", artifact(tmp_path, 0)], tmp_path)
    assert whole.code == 0, whole.errors
    (manifest,) = (place for place, effect in enumerate(whole.effects, 1) if "release.json HTTP/1.1" in effect)
    assert killed(account, tmp_path, artifact(tmp_path, 1), manifest).code == -9


@pytest.mark.slow
def test_m25_ferry_release_killed_at_many_moments_loses_nothing(account: Account, tmp_path: Path) -> None:
    whole = kills.run(account.settings_path, ["release", artifact(tmp_path, 0)], tmp_path)
    assert whole.code == 0, whole.errors
    effects = range(1, len(whole.effects) + 1)
    for seed, before in enumerate(random.Random(25).sample(effects, min(len(effects), 24)), 1):
        killed(account, tmp_path, artifact(tmp_path, seed), before)


# One cloud that is away


def door(seed: int) -> dict[str, list[Reply]]:
    """Both doors' paths, answered by the tiny model of this seed."""
    description = describe(onnx_bytes(seed), seed=seed)

    def classified() -> Reply:
        outputs = log_probabilities(description.signature.golden.inputs, seed=seed)
        body = {
            "digits": outputs.argmax(axis=1).tolist(),
            "probabilities": [[2.718281828459045**x for x in row] for row in outputs.tolist()],
        }
        return Reply(200, json.dumps(body).encode(), {"x-release-id": description.release_id})

    health = Reply(200, json.dumps({"status": "ok", "release_id": description.release_id}).encode())
    return {
        "POST /invocations": [classified()], "GET /ping": [health],
        "POST /api/classify": [classified()], "GET /api/health": [health],
    }  # fmt: skip


def facing(account: Account, **ports: int) -> Account:
    """The same environment, whose doors (sagemaker=, azure=) and emulator (emulator=) are at these ports."""
    text = account.settings_path.read_text()
    for name, port in ports.items():
        text, replaced = re.subn(rf"(?m)^{name}_port = \d+$", f"{name}_port = {port}", text)
        assert replaced == 1
    path = account.settings_path.with_name(f"facing-{'-'.join(map(str, ports.values()))}.toml")
    path.write_text(text)
    return Account(load_settings(str(path)), path)


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def verified(account: Account) -> tuple[int, dict[str, tuple[str | None, bool]]]:
    """Exit code of `ferry verify`, and for each door the release that it serves and whether that is in order."""
    finished = ferry(account, "verify", "--json")
    reports = json.loads(finished.stdout)["doors"]
    return finished.exit_code, {each["door"]: (each["release_id"], not each["problems"]) for each in reports}


def test_m24_a_release_that_reached_one_cloud_only_is_told_with_what_each_serves(
    account: Account, tmp_path: Path
) -> None:
    old = make_release(account.settings, artifact(tmp_path, 0), silent)
    new = make_release(account.settings, artifact(tmp_path, 1), silent)
    with scripted(door(0)) as behind, scripted(door(1)) as ahead, scripted(door(1)) as too:
        for names in (("sagemaker", "azure"), ("azure", "sagemaker")):
            torn = facing(account, **dict(zip(names, (port(ahead), port(behind)), strict=True)))
            assert verified(torn) == (1, {names[0]: (new.release_id, True), names[1]: (old.release_id, False)})
            said = ferry(torn, "verify").stderr
            assert f"{names[1]}: not what release {new.release_id}" in " ".join(said.split())
        assert verified(facing(account, sagemaker=port(ahead), azure=port(too)))[0] == 0
        away = facing(account, sagemaker=port(ahead), azure=free_ports(1)[0])
        assert verified(away) == (1, {"sagemaker": (new.release_id, True), "azure": (None, False)})
    # Nothing above changed what is stored or what is current: the same release goes to the cloud that lacks it.
    assert make_release(account.settings, artifact(tmp_path, 1), silent) == current_release(account.settings)[0] == new
    assert [each.release for each in list_releases(account.settings, silent) if each.current] == [new]


def test_d22_a_rollback_while_the_store_is_away_changes_nothing_and_works_later(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_release(account.settings, artifact(tmp_path, 0), silent)
    new = make_release(account.settings, artifact(tmp_path, 1), silent)
    away = facing(account, emulator=free_ports(1)[0])
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    finished = ferry(away, "rollback", old.release_id)
    assert finished.exit_code == 1
    assert "Could not connect" in " ".join(finished.stderr.split())
    assert current_release(account.settings)[0] == new
    assert ferry(account, "rollback", old.release_id).exit_code == 0
    assert current_release(account.settings)[0] == old


def test_d22_a_rollback_while_one_cloud_is_away_tells_the_split_and_can_be_repeated(
    account: Account, tmp_path: Path
) -> None:
    old = make_release(account.settings, artifact(tmp_path, 0), silent)
    new = make_release(account.settings, artifact(tmp_path, 1), silent)
    stored = versions(account)
    with scripted(door(0)) as back, scripted(door(0)) as later, scripted(door(1)) as still:
        finished = ferry(account, "rollback", old.release_id)
        assert finished.exit_code == 0, finished.output
        split = facing(account, sagemaker=port(back), azure=port(still))
        assert verified(split) == (1, {"sagemaker": (old.release_id, True), "azure": (new.release_id, False)})
        first = account.settings.release_path.read_bytes()
        assert ferry(account, "rollback", old.release_id).exit_code == 0
        assert account.settings.release_path.read_bytes() == first
        assert verified(facing(account, sagemaker=port(back), azure=port(later)))[0] == 0
    assert current_release(account.settings)[0] == old
    assert versions(account) == stored
    listed = ferry(account, "rollback", "--list").stdout
    assert [line.split()[0] for line in listed.splitlines() if "current" in line] == [old.release_id]


def test_d22_a_rollback_without_an_id_says_how_to_repeat_it(account: Account, tmp_path: Path) -> None:
    for seed, day in ((0, 1), (1, 2), (2, 3)):
        training = {"dataset": "mnist", "ended_at": f"2026-01-0{day}T00:00:00Z", "hyperparameters": {}}
        make_release(account.settings, artifact(tmp_path, seed, training=training), silent)
    finished = ferry(account, "rollback")
    current = current_release(account.settings)[0].release_id
    assert f"`ferry rollback {current}`: without its id" in " ".join(finished.output.split())
    assert ferry(account, "rollback", current).exit_code == 0
    assert current_release(account.settings)[0].release_id == current
