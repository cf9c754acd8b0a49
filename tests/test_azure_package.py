"""The package as the Azure stack reads it: it holds the release, and its digests change with what they are named after."""

import base64
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from infra.azure.package import code_sha256, read_package
from infra.release import Release, ReleaseError
from tests.stack_fixtures import dev_settings, make_release

RELEASE = make_release(dev_settings())


def write_package(path: Path, members: Mapping[str, bytes] = MappingProxyType({}), release: Release = RELEASE) -> Path:
    """A small zip laid out as `ferry package` does; `members` add to its files or replace them."""
    files = {"function_app.py": b"app", "host.json": b"{}", "release/release.json": release.to_bytes(), **members}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def code(path: Path) -> str:
    return code_sha256(path.read_bytes())


def test_a_package_is_read_with_the_digests_of_its_bytes(tmp_path: Path) -> None:
    path = write_package(tmp_path / "package.zip")
    content = path.read_bytes()
    package = read_package(path, RELEASE)
    assert package.path == path
    assert (package.sha256, package.md5) == (hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest())
    assert package.code_sha256 == code(path)


def test_another_release_around_the_same_code_leaves_the_digest_of_the_code(tmp_path: Path) -> None:
    one = write_package(tmp_path / "one.zip", {"release/model.onnx": b"one"})
    other = write_package(tmp_path / "other.zip", {"release/model.onnx": b"other", "release/model.json": b"{}"})
    assert code(one) == code(other)
    assert read_package(one, RELEASE).sha256 != read_package(other, RELEASE).sha256


@pytest.mark.parametrize(
    "members",
    [
        {"function_app.py": b"app = 2"},
        {"model_code/environment.py": b""},
        {".python_packages/lib/site-packages/numpy/version.py": b"2"},
        {"released.py": b""},
    ],
    ids=["other-content", "another-file", "another-wheel", "a-name-that-only-begins-alike"],
)
def test_other_code_around_the_same_release_changes_the_digest_of_the_code(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    assert code(write_package(tmp_path / "one.zip")) != code(write_package(tmp_path / "other.zip", members))


def test_a_renamed_file_changes_the_digest_of_the_code(tmp_path: Path) -> None:
    one = write_package(tmp_path / "one.zip", {"a.py": b"same"})
    other = write_package(tmp_path / "other.zip", {"b.py": b"same"})
    assert code(one) != code(other)


def test_the_order_and_the_compression_of_the_members_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("release/release.json", RELEASE.to_bytes())
        archive.writestr("host.json", b"{}")
        archive.writestr("function_app.py", b"app")
    assert code(path) == code(write_package(tmp_path / "one.zip"))


def test_a_package_of_another_release_is_refused_with_the_remedy(tmp_path: Path) -> None:
    other = RELEASE.model_copy(update={"training_end_time": "2026-01-01T00:00:00Z"})
    path = write_package(tmp_path / "package.zip", release=other)
    with pytest.raises(
        ReleaseError, match=rf"package\.zip: holds another release than {RELEASE.release_id}; .*ferry package"
    ):
        read_package(path, RELEASE)


def missing(path: Path) -> None:
    path.unlink()


def no_zip(path: Path) -> None:
    path.write_bytes(base64.b64encode(path.read_bytes()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def without_release(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("host.json", b"{}")


@pytest.mark.parametrize("damage", [missing, no_zip, cut, without_release])
def test_what_is_no_package_is_refused_with_the_remedy(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = write_package(tmp_path / "package.zip")
    damage(path)
    with pytest.raises(ReleaseError, match=r"package\.zip: no package that can be read .*ferry package"):
        read_package(path, RELEASE)
