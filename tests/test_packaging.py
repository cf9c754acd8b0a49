"""The Azure package: what is in it, that it is the same for the same inputs, and that it works with nothing beside it."""

import hashlib
import io
import json
import marshal
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferry import package as package_module
from ferry.errors import FerryError
from ferry.package import SITE_PACKAGES, PackageReport, build_package
from ferry.wheels import WheelError, fetch_wheels, read_pins, read_wheel
from infra.azure.package import code_sha256
from infra.release import FileDigest, Gate, Release, StoredArchive, release_id
from infra.settings import ROOT
from model_code import environment
from tests.serving_models import write_artifact

REQUIREMENTS = ROOT / "function_app" / "requirements.txt"
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHON = "3.12" if THIS_PYTHON != "3.12" else "3.11"


def write_release(folder: Path, *, seed: int = 0, extra_members: dict[str, bytes] | None = None) -> Release:
    """A release of the tiny model of this seed in `folder`, as `ferry release` leaves it."""
    archive = folder / "model.tar.gz"
    description = write_artifact(archive, seed=seed, extra_members=extra_members)
    raw = archive.read_bytes()
    release = Release(
        schema_version=2,
        release_id=release_id(description.model, description.onnx.sha256),
        model=description.model,
        dataset=description.training.dataset,
        archive=StoredArchive(
            uri="s3://bucket/releases/model.tar.gz",
            version_id="1",
            sha256=hashlib.sha256(raw).hexdigest(),
            size=len(raw),
        ),
        onnx=FileDigest(sha256=description.onnx.sha256, size=description.onnx.size),
        model_json=model_json_digest(archive),
        metrics=dict(description.metrics),
        gate=Gate(metric="accuracy", threshold=0.0, value=description.metrics["accuracy"]),
        pipeline_execution="local",
        model_package=None,
        dataset_manifest_sha256=None,
        source_revision=description.source_revision,
        training_end_time=description.training.ended_at,
    )
    (folder / "release.json").write_bytes(release.to_bytes())
    return release


def model_json_digest(archive: Path) -> FileDigest:
    from ferry.archive import read_archive

    content = read_archive(archive.read_bytes(), str(archive))["model.json"]
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


@pytest.fixture(scope="session")
def release_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_release(folder)
    return folder


@pytest.fixture(scope="session")
def built(release_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PackageReport:
    """The package for the Python that runs the tests."""
    return build_package(release_dir, tmp_path_factory.mktemp("package") / "package.zip", python_version=THIS_PYTHON)


@pytest.fixture(scope="session")
def names(built: PackageReport) -> list[str]:
    with zipfile.ZipFile(built.path) as archive:
        return archive.namelist()


@pytest.fixture
def unpacked(built: PackageReport, tmp_path: Path) -> Path:
    with zipfile.ZipFile(built.path) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


def probe(folder: Path) -> subprocess.CompletedProcess[str]:
    """The golden request, asked in a process that sees the standard library and `folder` only."""
    release = json.loads((folder / "release" / "release.json").read_bytes())
    variables = {environment.RELEASE_ID: release["release_id"]}
    command = [sys.executable, "-I", "-S", "-B", str(ROOT / "ferry" / "package_probe.py"), str(folder)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_d14_our_files_are_exactly_the_allowed_ones(names: list[str]) -> None:
    core = [path.name for path in (ROOT / "model_code" / "inference").glob("*.py")]
    expected = {"host.json", "function_app.py", "model_code/__init__.py", "model_code/environment.py"}
    expected |= {f"model_code/inference/{name}" for name in (*core, "libarrays.so")}
    expected |= {f"release/{name}" for name in ("release.json", "model.onnx", "model.json")}
    ours = {name for name in names if not name.startswith(".python_packages/")}
    assert {name for name in ours if "__pycache__" not in name} == expected
    sources = {name for name in expected if name.endswith(".py")}
    assert len([name for name in ours if name.endswith(".pyc")]) == len(sources)


def test_site_packages_holds_the_pinned_distributions_and_nothing_else(names: list[str]) -> None:
    top = {name.removeprefix(f"{SITE_PACKAGES}/").split("/")[0] for name in names if name.startswith(SITE_PACKAGES)}
    described = {
        f"{name.replace('-', '_')}-{version}.dist-info"
        for name, version in read_pins(REQUIREMENTS, THIS_PYTHON).items()
    }
    assert {name for name in top if name.endswith(".dist-info")} == described
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "azure",
        "csimdjson.abi3.so",
        "PIL",
        "markupsafe",
        "numpy",
        "numpy.libs",
        "onnxruntime",
        "pillow.libs",
        "simdjson",
        "werkzeug",
    }


def test_licences_stay_in_the_package(names: list[str]) -> None:
    for distribution in ("numpy", "onnxruntime", "pillow", "werkzeug", "pysimdjson", "markupsafe", "azure_functions"):
        inside = [name for name in names if f"/{distribution}" in name and "licen" in name.lower()]
        assert inside, distribution


def test_the_package_stays_below_its_limit(built: PackageReport) -> None:
    assert built.path.stat().st_size == built.size <= 45 * 2**20
    assert built.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()


def test_the_same_inputs_give_the_same_bytes(built: PackageReport, release_dir: Path, tmp_path: Path) -> None:
    again = build_package(release_dir, tmp_path / "elsewhere" / "again.zip", python_version=THIS_PYTHON)
    assert again.sha256 == built.sha256


@pytest.mark.slow
def test_another_model_changes_the_package_and_not_the_digest_of_its_code(built: PackageReport, tmp_path: Path) -> None:
    write_release(tmp_path, seed=1)
    other = build_package(tmp_path, tmp_path / "other.zip", python_version=THIS_PYTHON)
    assert other.sha256 != built.sha256
    assert code_sha256(other.path.read_bytes()) == code_sha256(built.path.read_bytes())


def test_members_are_sorted_and_carry_no_time_and_no_owner(built: PackageReport, names: list[str]) -> None:
    assert names == sorted(set(names))
    with zipfile.ZipFile(built.path) as archive:
        members = archive.infolist()
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert {member.external_attr >> 16 for member in members} == {0o100644}
    assert not any(member.extra for member in members)


def test_every_source_has_bytecode_that_names_the_folder_on_azure(built: PackageReport, names: list[str]) -> None:
    assert built.bytecode
    compiled = [name for name in names if name.endswith(".pyc")]
    assert len(compiled) == len([name for name in names if name.endswith(".py")])
    with zipfile.ZipFile(built.path) as archive:
        contents = {name: archive.read(name) for name in compiled}
    code = marshal.loads(contents[next(name for name in compiled if name.startswith("__pycache__/function_app."))][16:])
    assert code.co_filename == "/home/site/wwwroot/function_app.py"
    machine = [str(ROOT).encode(), b"/ferry-package-"]
    assert not [name for name, content in contents.items() if any(path in content for path in machine)]
    # Flags 0b01: checked by hash, never. A check by time would fail on every file of a zip.
    assert {content[4:8] for content in contents.values()} == {b"\x01\x00\x00\x00"}


def test_it_answers_a_request_in_a_process_that_can_import_nothing_else(built: PackageReport, unpacked: Path) -> None:
    assert built.tested_with == THIS_PYTHON
    finished = probe(unpacked)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("missing", ["werkzeug", "numpy", "onnxruntime", "simdjson", "PIL"])
def test_d14_a_package_without_one_of_its_distributions_fails_the_self_test(missing: str, unpacked: Path) -> None:
    shutil.rmtree(unpacked / SITE_PACKAGES / missing)
    finished = probe(unpacked)
    assert finished.returncode != 0
    assert f"No module named '{missing}" in finished.stderr


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_is_left_of_pillow_decodes_both_formats(kind: str, unpacked: Path) -> None:
    body = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, size=(28, 28)).astype(np.uint8)
    Image.fromarray(pixels).save(body, kind)
    script = (
        "import sys\n"
        "from types import SimpleNamespace\n"
        f"sys.path += [{str(unpacked / SITE_PACKAGES)!r}, {str(unpacked)!r}]\n"
        "import azure.functions, function_app\n"
        f"headers = {{'content-type': 'image/{kind.lower()}'}}\n"
        "request = azure.functions.HttpRequest('POST', '/', headers=headers, body=sys.stdin.buffer.read())\n"
        "answer = function_app.classify.build().get_user_function()(request, SimpleNamespace(invocation_id='x'))\n"
        "print(answer.status_code, answer.get_body().decode())\n"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", script]
    finished = subprocess.run(command, env={}, input=body.getvalue(), capture_output=True, check=True)
    assert finished.stdout.startswith(b"200 ")


@pytest.mark.parametrize(("name", "end"), [("model.onnx", b"\x00"), ("model.json", b" \n")])
def test_a_package_with_another_model_or_description_fails_the_self_test(name: str, end: bytes, unpacked: Path) -> None:
    path = unpacked / "release" / name
    path.write_bytes(path.read_bytes()[:-1] + end)
    finished = probe(unpacked)
    assert finished.returncode != 0
    assert "DIGEST_MISMATCH" in finished.stderr


def test_a_package_of_another_release_than_the_declared_one_fails_the_self_test(unpacked: Path) -> None:
    release = unpacked / "release" / "release.json"
    document = json.loads(release.read_bytes())
    release.write_text(json.dumps(document | {"release_id": "mnist-000000000000"}))
    assert "release id is mnist-" in probe(unpacked).stderr


@pytest.mark.slow
def test_a_package_for_a_python_that_is_not_here_is_tested_with_the_same_versions_for_this_one(
    release_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no other Python here, whatever this machine has
    lines: list[str] = []
    report = build_package(release_dir, tmp_path / "package.zip", python_version=OTHER_PYTHON, report=lines.append)
    assert (report.python_version, report.bytecode, report.tested_with) == (OTHER_PYTHON, False, THIS_PYTHON)
    assert any(line.startswith("no bytecode: ") and OTHER_PYTHON in line for line in lines)
    assert any(line.startswith("tested ") and f"{OTHER_PYTHON} is not on this machine" in line for line in lines)
    with zipfile.ZipFile(report.path) as archive:
        compiled = [name for name in archive.namelist() if ".cpython-" in name]
    assert compiled
    assert all(f".cpython-{OTHER_PYTHON.replace('.', '')}-x86_64-linux-gnu.so" in name for name in compiled)


def test_d14_a_package_over_the_limit_names_its_largest_entries_and_leaves_the_previous_one(
    release_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "MAX_PACKAGE_BYTES", 20 * 2**20)
    output = tmp_path / "package.zip"
    output.write_bytes(b"previous")
    with pytest.raises(FerryError, match=r"at most 20 MiB.*Largest entries: .*onnxruntime_pybind11_state"):
        build_package(release_dir, output, python_version=OTHER_PYTHON)
    assert output.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == ["package.zip"]


@pytest.mark.parametrize("version", ["3", "312", "3.12.1", "latest"])
def test_a_python_version_is_major_and_minor(version: str, release_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FerryError, match=r"give major and minor version, for instance 3\.12"):
        build_package(release_dir, tmp_path / "package.zip", python_version=version)


def test_a_folder_that_cannot_be_written_is_named(release_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FerryError, match=r"file.*: Not a directory; the package was not written"):
        build_package(release_dir, tmp_path / "package.zip", cache=tmp_path / "file" / "wheels")


def replace_byte(folder: Path) -> None:
    path = folder / "model.tar.gz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def remove_archive(folder: Path) -> None:
    (folder / "model.tar.gz").unlink()


def remove_release(folder: Path) -> None:
    (folder / "release.json").unlink()


def add_member(folder: Path) -> None:
    write_release(folder, extra_members={"inference.py": b"print()"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace_byte, "DIGEST_MISMATCH"),
        (add_member, "UNEXPECTED_MEMBER"),
        (remove_archive, "make it with `ferry release`"),
        (remove_release, "make it with `ferry release`"),
    ],
)
def test_a_release_that_is_not_whole_is_refused_and_the_previous_package_stays(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    write_release(tmp_path)
    damage(tmp_path)
    output = tmp_path / "package.zip"
    output.write_bytes(b"previous")
    with pytest.raises(FerryError, match=message):
        build_package(tmp_path, output, python_version=THIS_PYTHON)
    assert output.read_bytes() == b"previous"


@pytest.mark.parametrize(
    "line", ["numpy", "numpy>=2", "numpy==2.4.*", "-r other.txt", "numpy @ https://example.com/a.whl"]
)
def test_requirements_are_exact_pins_only(line: str, tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"# comment\nWerkzeug==3.1.9  # pinned\n{line}\n")
    with pytest.raises(WheelError, match=r"requirements.txt:3: .*only exact pins"):
        read_pins(path, "3.12")


def test_a_marker_is_held_against_the_python_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text('a==1; python_version < "3.13"  # old\na==2; python_version >= "3.13"\n')
    assert [read_pins(path, version) for version in ("3.9", "3.12", "3.13")] == [{"a": "1"}, {"a": "1"}, {"a": "2"}]


def write_wheel(path: Path, *names: str, symlink: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o120777 if symlink else 0o100644) << 16
            archive.writestr(member, b"content")
    return path


@pytest.mark.parametrize(
    "name", ["../x.py", "/etc/x", "a//b.py", "a/./b.py", "C:/x", "a\\b.py", "a\nb.py", "x.data/scripts/run"]
)
def test_a_wheel_with_an_unsafe_member_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="member"):
        read_wheel(write_wheel(tmp_path / "x-1-py3-none-any.whl", "x/__init__.py", name))


def test_a_wheel_with_a_link_or_a_repeated_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="could leave its folder"):
        read_wheel(write_wheel(tmp_path / "x-1-py3-none-any.whl", "x.py", symlink=True))
    with pytest.warns(UserWarning, match="Duplicate name"):
        repeated = write_wheel(tmp_path / "y-1-py3-none-any.whl", "y.py", "y.py")
    with pytest.raises(WheelError, match="twice"):
        read_wheel(repeated)


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path / "x-1-py3-none-any.whl", "x.py")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WheelError, match="cannot be read"):
        read_wheel(path)


@pytest.mark.parametrize(
    "tags",
    ["cp310-cp310-manylinux2014_x86_64", "py2-none-any", "cp312-cp312-win_amd64", "cp312-cp312-manylinux2014_aarch64"],
)
def test_d14_a_wheel_for_another_python_or_machine_is_refused(tags: str, tmp_path: Path) -> None:
    (folder,) = cached_folder(tmp_path)
    for wheel in folder.iterdir():
        wheel.unlink()
    write_wheel(folder / f"markupsafe-3.0.4-{tags}.whl", "markupsafe/__init__.py")
    with pytest.raises(WheelError, match=r"Python 3\.12 on Linux x86-64 is needed"):
        fetch_wheels({"markupsafe": "3.0.4"}, "3.12", tmp_path)


def cached_folder(cache: Path) -> list[Path]:
    """Fill a cache with one small wheel from the registry; returns its only folder."""
    fetch_wheels({"markupsafe": "3.0.4"}, "3.12", cache)
    return [path for path in cache.iterdir() if path.is_dir()]


def test_wheels_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch_wheels({"markupsafe": "3.0.4"}, "3.12", tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:1/")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch_wheels({"markupsafe": "3.0.4"}, "3.12", tmp_path) == first


def test_a_pin_that_no_registry_has_says_what_to_do_and_leaves_no_cache(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match=r"(?s)could not be fetched.*requirements\.txt"):
        fetch_wheels({"markupsafe": "0.0.999"}, "3.12", tmp_path)
    assert list(tmp_path.iterdir()) == []
