"""Fetches pinned wheels for another Python and reads out of them what a deployment needs.

A wheel is a zip: it is read member by member, never installed, so no code of a distribution runs here.
"""

import hashlib
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ferry.errors import FerryError

# The Functions host runs on x86-64 with a glibc newer than 2.28.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
_MAX_UNPACKED = 600 * 2**20
_ERROR_LINES = 5

# What no inference loads: pattern of the path inside the wheel, and why it can go. Measured with these pins by loading a
# session and answering requests; the package's self-test repeats that at every build.
PRUNED: Mapping[str, str] = {
    "*.dist-info/RECORD": "lists files that are not packed",
    "*/tests/*": "tests of the distribution",
    "*_tests.cpython-*.so": "compiled helpers of those tests",
    "*.pyi": "type stubs",
    "*/py.typed": "marks type stubs",
    "*.[ch]": "sources and headers for building against it",
    "*.[ch]pp": "sources and headers for building against it",
    "*.px[di]": "sources and headers for building against it",
    "*.pyx": "sources and headers for building against it",
    "*.a": "static libraries for building against it",
    "numpy/distutils/*": "builds extension modules",
    "numpy/f2py/*": "builds extension modules",
    "onnxruntime/capi/libonnxruntime.so.*": "the Python module is linked with the same code statically",
    "onnxruntime/backend/*": "adapter for ONNX's own test runner",
    "onnxruntime/datasets/*": "sample models",
    "onnxruntime/quantization/*": "makes models, serves none",
    "onnxruntime/tools/*": "makes models, serves none",
    "onnxruntime/transformers/*": "makes models, serves none",
    "PIL/_avif.*": "another format than PNG and JPEG",
    "PIL/_imagingcms.*": "colour profiles, which are not applied",
    "PIL/_imagingft.*": "draws text",
    "PIL/_imagingmath.*": "computes with images",
    "PIL/_imagingmorph.*": "computes with images",
    "PIL/_imagingtk.*": "shows images",
    "PIL/_webp.*": "another format than PNG and JPEG",
    "pillow.libs/libavif-*": "of PIL/_avif",
    "pillow.libs/libbrotli*": "of PIL/_imagingft",
    "pillow.libs/libfreetype-*": "of PIL/_imagingft",
    "pillow.libs/libharfbuzz-*": "of PIL/_imagingft",
    "pillow.libs/liblcms2-*": "of PIL/_imagingcms",
    "pillow.libs/libpng16-*": "of PIL/_imagingft; PIL/_imaging reads PNG itself",
    "pillow.libs/libsharpyuv-*": "of PIL/_webp",
    "pillow.libs/libwebp*": "of PIL/_webp",
}


class WheelError(FerryError):
    """A wheel is missing, unsafe, or made for another Python or machine."""


def read_pins(requirements: Path, python_version: str) -> dict[str, str]:
    """Normalised name to exact version, from a requirements file that holds nothing but pins. Raises WheelError.

    A pin may have a marker on `python_version`, which is held against the package's Python and not against this one.
    """
    pins: dict[str, str] = {}
    for number, line in enumerate(requirements.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            requirement = None
        pin = _exact_version(requirement) if requirement else None
        if requirement is None or pin is None:
            raise WheelError(f"{requirements}:{number}: {text!r}; only exact pins like numpy==2.4.6 are allowed")
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python_version}):
            pins[canonicalize_name(requirement.name)] = pin
    return pins


def _exact_version(requirement: Requirement) -> str | None:
    """The version that a requirement pins, or None where it leaves a choice."""
    specifiers = list(requirement.specifier)
    if len(specifiers) != 1 or requirement.url or requirement.extras:
        return None
    (specifier,) = specifiers
    return specifier.version if specifier.operator == "==" and "*" not in specifier.version else None


def fetch_wheels(pins: Mapping[str, str], python_version: str, cache: Path) -> list[Path]:
    """One wheel for each pin, for `python_version` ("3.12") on Linux x86-64, from below `cache` or else from the registry.

    Raises WheelError.
    """
    wanted = "\n".join([python_version, *_PLATFORMS, *(f"{name}=={pins[name]}" for name in sorted(pins))])
    folder = cache / f"{python_version}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        _download(pins, python_version, folder)
    wheels = sorted(folder.glob("*.whl"))
    found = {}
    for wheel in wheels:
        name, version, *tags = wheel.stem.split("-")
        found[canonicalize_name(name)] = version
        _check_tags(wheel, tags[-3:], python_version)
    if found != dict(pins):
        raise WheelError(f"{folder}: holds {found}, but the pins are {dict(pins)}; delete it and build again")
    return wheels


def read_wheel(wheel: Path, *, keep: Collection[str] = ()) -> dict[str, bytes]:
    """Path to content of what a deployment needs of `wheel`; see PRUNED, of which the patterns in `keep` stay. Raises
    WheelError."""
    pruned = PRUNED.keys() - keep
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > _MAX_UNPACKED:
                raise WheelError(f"{wheel}: more than {_MAX_UNPACKED} bytes unpacked")
            for member in members:
                _check_member(wheel, member, files)
                if not any(fnmatchcase(member.filename, pattern) for pattern in pruned):
                    files[member.filename] = archive.read(member)
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise WheelError(f"{wheel}: cannot be read ({error}); delete {wheel.parent} and build again") from error
    return files


def _download(pins: Mapping[str, str], python_version: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
        command += [f"--platform={platform}" for platform in _PLATFORMS]
        command += ["--dest", temporary, *(f"{name}=={version}" for name, version in pins.items())]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            reason = "\n".join(finished.stderr.strip().splitlines()[-_ERROR_LINES:])
            raise WheelError(
                f"the wheels for Python {python_version} could not be fetched into {folder}:\n{reason}\n"
                "Check the network and the pins in the requirements.txt, then build again."
            )
        # Seen whole or not at all; when another build was quicker, its folder holds the same files.
        complete = Path(temporary) / "complete"
        complete.mkdir()
        for wheel in Path(temporary).glob("*.whl"):
            wheel.rename(complete / wheel.name)
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(complete)


def _check_tags(wheel: Path, tags: list[str], python_version: str) -> None:
    """A wheel for another Python or machine would import on no instance of the Function App."""
    python, abi, platform = (tag.split(".") for tag in tags)
    minor = int(python_version.partition(".")[2])
    compiled = f"cp3{minor}" in python or ("abi3" in abi and any(tag in python for tag in _older_than(minor)))
    if not (("py3" in python or compiled) and (platform == ["any"] or set(platform) & set(_PLATFORMS))):
        raise WheelError(f"{wheel}: made for {'-'.join(tags)}; Python {python_version} on Linux x86-64 is needed")


def _older_than(minor: int) -> list[str]:
    return [f"cp3{older}" for older in range(2, minor)]


def _check_member(wheel: Path, member: zipfile.ZipInfo, files: Mapping[str, bytes]) -> None:
    name = member.filename
    parts = name.split("/")
    unsafe = (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or ":" in parts[0]
        or not name.isprintable()
        or stat.S_ISLNK(member.external_attr >> 16)
    )
    if unsafe:
        raise WheelError(f"{wheel}: member {name!r} could leave its folder; nothing of it was used")
    if parts[0].endswith(".data"):
        raise WheelError(f"{wheel}: member {name!r} wants to be installed elsewhere, which a package cannot do")
    if name in files:
        raise WheelError(f"{wheel}: member {name!r} stands in it twice")
