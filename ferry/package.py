"""Builds the zip that the Azure Function App runs from: our files by allow-list, pinned wheels, one release.

The same inputs give the same bytes. Nothing is resolved or compiled on Azure: a remote build is slow, has a limit of 60
seconds, and a read-only package can never cache its own bytecode.
"""

import hashlib
import io
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ferry.console import Report
from ferry.errors import FerryError
from ferry.files import write_atomically
from ferry.native import native_files
from ferry.release import verified_members
from ferry.wheels import fetch_wheels, read_pins, read_wheel
from infra.release import Release, ReleaseError, read_release
from infra.settings import FUNCTION_PYTHON, ROOT
from model_code import environment

SITE_PACKAGES = ".python_packages/lib/site-packages"
MAX_PACKAGE_BYTES = 45 * 2**20
WHEEL_CACHE = ROOT / "build" / "wheels"

_REQUIREMENTS = ROOT / "function_app" / "requirements.txt"
_PROBE = Path(__file__).with_name("package_probe.py")
# Where the host mounts the package; tracebacks name this folder and not the one of the building machine.
_MOUNT = "/home/site/wwwroot"
_PROBE_SECONDS = 120
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageError(FerryError):
    """The package was not built; the one that was there before still is."""


@dataclass(frozen=True)
class PackageReport:
    """What was built. `bytecode` is False where this machine has no Python of `python_version`.

    `tested_with` is the Python that ran the self-test: the package itself where it is `python_version`, else the same files
    beside the same versions of the wheels for that Python. None where this machine can run neither.
    """

    path: Path
    sha256: str
    size: int
    python_version: str
    bytecode: bool
    tested_with: str | None
    files: int


def build_package(
    release_dir: Path,
    output: Path,
    *,
    python_version: str = FUNCTION_PYTHON,
    cache: Path = WHEEL_CACHE,
    report: Report = lambda line: None,
) -> PackageReport:
    """Pack the release in `release_dir` (release.json beside model.tar.gz) for `python_version` and write `output`.

    Wheels come from below `cache`; the first build for a set of pins fills it from the registry. Lines of progress go to
    `report`. Raises FerryError; then `output` is what it was.
    """
    try:
        return _build(release_dir, output, python_version, cache, report)
    except OSError as error:
        raise PackageError(
            f"{error.filename or output}: {error.strerror}; the package was not written. Make room, or give another --output"
        ) from error


def _build(release_dir: Path, output: Path, python_version: str, cache: Path, report: Report) -> PackageReport:
    if not re.fullmatch(r"3\.\d+", python_version):
        raise PackageError(f"Python {python_version!r}: give major and minor version, for instance {FUNCTION_PYTHON}")
    release, members = _read_release(release_dir)
    pins = read_pins(_REQUIREMENTS, python_version)
    files = _own_files() | _release_files(release, members) | _wheel_files(pins, python_version, cache)
    report(f"packed    {release.release_id}, {', '.join(f'{name} {version}' for name, version in pins.items())}")

    interpreter = _interpreter(python_version)
    if interpreter:
        files |= _bytecode(files, interpreter)
    else:
        report(
            f"no bytecode: there is no Python {python_version} on this machine; every cold start compiles the sources. "
            f"With a python{python_version} on the PATH the package ships it"
        )
    content = _zip(files)
    _check_size(content, output)

    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        tested_with = None
        report("not tested: only Linux on x86-64 can run this package")
    else:
        tested_with = python_version if interpreter else f"{sys.version_info.major}.{sys.version_info.minor}"
        if not interpreter:
            files = _own_files() | _release_files(release, members)
            files |= _wheel_files(read_pins(_REQUIREMENTS, tested_with), tested_with, cache)
        _self_test(files, release, interpreter or sys.executable)
        report(_tested(python_version, tested_with))
    write_atomically(output, content)
    return PackageReport(
        path=output,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        python_version=python_version,
        bytecode=interpreter is not None,
        tested_with=tested_with,
        files=len(files),
    )


def _interpreter(python_version: str) -> str | None:
    """A Python of that version on this machine: this one, or the one of that name on the PATH, if it runs."""
    script = "import sys; print('{}.{}'.format(*sys.version_info))"
    for candidate in (sys.executable, shutil.which(f"python{python_version}")):
        if candidate is None:
            continue
        # A name on the PATH may be a version manager's, which runs only where that version is chosen.
        answer = subprocess.run([candidate, "-I", "-S", "-c", script], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip() == python_version:
            return candidate
    return None


def _tested(python_version: str, tested_with: str) -> str:
    what = "the golden inputs get their labels in a process that can import nothing but the package"
    if tested_with == python_version:
        return f"tested    {what}"
    return f"tested    {what}, with the same versions for Python {tested_with}: {python_version} is not on this machine"


def _read_release(release_dir: Path) -> tuple[Release, dict[str, bytes]]:
    """The release and its members, every byte compared with the digests of release.json."""
    try:
        release = read_release(release_dir / environment.RELEASE_FILE)
        path = release_dir / environment.ARCHIVE_FILE
        archive = path.read_bytes()
    except ReleaseError as error:
        raise PackageError(str(error)) from error
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); make it with `ferry release`") from error
    return release, verified_members(release, archive, str(path))


def _own_files() -> dict[str, bytes]:
    """The allow-list: the function at the zip's root, the serving core and its library at their own paths, nothing else."""
    sources = {name: ROOT / "function_app" / name for name in ("function_app.py", "host.json")}
    core = [ROOT / "model_code" / "__init__.py", ROOT / "model_code" / "environment.py"]
    core += sorted((ROOT / "model_code" / "inference").glob("*.py"))
    sources |= {path.relative_to(ROOT).as_posix(): path for path in core}
    return {name: path.read_bytes() for name, path in sources.items()} | native_files()


def _release_files(release: Release, members: Mapping[str, bytes]) -> dict[str, bytes]:
    files = {environment.RELEASE_FILE: release.to_bytes(), **members}
    return {f"release/{name}": content for name, content in files.items()}


def _wheel_files(pins: Mapping[str, str], python_version: str, cache: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for wheel in fetch_wheels(pins, python_version, cache):
        unpacked = {f"{SITE_PACKAGES}/{name}": content for name, content in read_wheel(wheel).items()}
        if overlap := files.keys() & unpacked.keys():
            raise PackageError(f"{wheel}: {min(overlap)} is in another wheel as well; one of them cannot be packed")
        files |= unpacked
    return files


def _bytecode(files: Mapping[str, bytes], interpreter: str) -> dict[str, bytes]:
    """A .pyc for each .py of `files`, compiled by `interpreter`.

    Unchecked: the host mounts the package read-only, and a zip has no times that a check could trust. A fresh process with
    a fixed hash seed, because the order of a set and the sharing of strings show in the bytes; not -I, which would ignore
    the seed. Without docstrings, a third of it, and assertions, as `python -OO` would run it; but Azure's worker runs without
    -OO and looks for bytecode under its plain name.
    """
    with tempfile.TemporaryDirectory(prefix="ferry-package-") as folder:
        root = Path(folder)
        _write_tree(root, {name: content for name, content in files.items() if name.endswith(".py")})
        command = [interpreter, "-P", "-s", "-S", "-m", "compileall", "-q", "-o", "2"]
        command += ["--invalidation-mode", "unchecked-hash"]
        command += ["-s", folder, "-p", _MOUNT, folder]
        finished = subprocess.run(
            command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False, cwd=folder
        )
        if finished.returncode != 0:
            raise PackageError(f"some source of the package does not compile:\n{finished.stdout}{finished.stderr}")
        compiled = root.rglob("*.pyc")
        return {path.relative_to(root).as_posix().replace(".opt-2", ""): path.read_bytes() for path in compiled}


def _zip(files: Mapping[str, bytes]) -> bytes:
    """A zip that depends on names and contents only: sorted, one date, one mode, one compression."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, date_time=_EPOCH)
            member.create_system = 3  # Unix, whatever system builds it: the mode below is Unix's
            member.external_attr = 0o100644 << 16
            archive.writestr(member, files[name], zipfile.ZIP_DEFLATED, compresslevel=6)
    return packed.getvalue()


def _check_size(content: bytes, output: Path) -> None:
    if len(content) <= MAX_PACKAGE_BYTES:
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = sorted(archive.infolist(), key=lambda member: member.compress_size, reverse=True)[:5]
    entries = ", ".join(f"{member.filename} ({member.compress_size / 2**20:.1f} MiB)" for member in largest)
    raise PackageError(
        f"{output}: {len(content) / 2**20:.1f} MiB; at most {MAX_PACKAGE_BYTES / 2**20:.0f} MiB, as cold starts download it. "
        f"Largest entries: {entries}"
    )


def _self_test(files: Mapping[str, bytes], release: Release, interpreter: str) -> None:
    """Answer a golden request from the package's files, in a process that can import nothing else and is told what Azure
    tells it: the release id."""
    with tempfile.TemporaryDirectory(prefix="ferry-package-") as folder:
        _write_tree(Path(folder), files)
        try:
            finished = subprocess.run(
                [interpreter, "-I", "-S", "-B", str(_PROBE), folder],
                env={environment.RELEASE_ID: release.release_id},
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
                check=False,
                cwd=folder,
            )
        except subprocess.TimeoutExpired as error:
            raise PackageError(f"the package gave no answer within {_PROBE_SECONDS} s; it was not written") from error
    if finished.returncode != 0:
        raise PackageError(f"the package does not answer its golden request; it was not written:\n{finished.stderr}")


def _write_tree(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
