"""`ferry release` publishes what passed every check, once, and never loses what was released before."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry import aws, local
from ferry.archive import read_archive, write_archive
from ferry.errors import FerryError, Refused
from ferry.release import Origin, current_release, make_release
from infra.release import ReleaseError, parse_release, read_release
from infra.settings import Settings
from model_code.inference.contract import ModelDescription, model_json_bytes, parse_model_json
from tests.emulated_training import emulated
from tests.serving_models import write_artifact


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("release")) as settings:
        yield settings


@pytest.fixture
def settings(emulator: Settings, tmp_path: Path) -> Settings:
    """An empty, versioned artifacts bucket, and a build folder of the test's own."""
    name = "t" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    fresh = emulator.model_copy(update={"build_dir": str(tmp_path / "build"), "environment": name})
    s3 = aws.client(fresh, "s3")
    s3.create_bucket(Bucket=fresh.artifact_bucket)
    s3.put_bucket_versioning(Bucket=fresh.artifact_bucket, VersioningConfiguration={"Status": "Enabled"})
    return fresh


def stored(settings: Settings) -> dict[str, Any]:
    listing = aws.client(settings, "s3").list_object_versions(Bucket=settings.artifact_bucket)
    return {entry["Key"]: entry["VersionId"] for entry in listing.get("Versions", [])}


def artifact(path: Path, seed: int = 0, **extra: bytes) -> tuple[str, ModelDescription]:
    description = write_artifact(path, seed=seed, extra_members=extra)
    return str(path), description


def changed(path: Path, **fields: Any) -> str:
    """The same artifact with other fields in its model.json."""
    members = read_archive(path.read_bytes(), "a")
    document = json.loads(members["model.json"]) | fields
    other = path.with_name("changed.tar.gz")
    other.write_bytes(write_archive(members | {"model.json": json.dumps(document).encode()}))
    return str(other)


def test_a_release_names_every_digest_of_what_is_stored(settings: Settings, tmp_path: Path) -> None:
    path, description = artifact(tmp_path / "model.tar.gz")
    release = make_release(settings, path, silent)
    assert release.release_id == f"{description.model}-{description.onnx.sha256[:12]}"
    key = f"releases/{release.release_id}/model.tar.gz"
    body = (
        aws.client(settings, "s3")
        .get_object(Bucket=settings.artifact_bucket, Key=key, VersionId=release.archive.version_id)["Body"]
        .read()
    )
    assert release.archive.uri == f"s3://{settings.artifact_bucket}/{key}"
    assert hashlib.sha256(body).hexdigest() == release.archive.sha256
    members = read_archive(body, key, exact=True)
    assert hashlib.sha256(members["model.onnx"]).hexdigest() == release.onnx.sha256 == description.onnx.sha256
    assert hashlib.sha256(members["model.json"]).hexdigest() == release.model_json.sha256
    assert read_release(settings.release_path) == release


def test_the_same_artifact_makes_the_same_release_and_stores_nothing_twice(settings: Settings, tmp_path: Path) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz")
    first = make_release(settings, path, silent)
    before, local_bytes = stored(settings), settings.release_path.read_bytes()
    assert make_release(settings, path, silent) == first
    assert stored(settings) == before
    assert settings.release_path.read_bytes() == local_bytes


def test_an_artifact_in_s3_makes_the_same_release_as_its_file(settings: Settings, tmp_path: Path) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz")
    aws.client(settings, "s3").put_object(
        Bucket=settings.artifact_bucket, Key="training/job/output/model.tar.gz", Body=Path(path).read_bytes()
    )
    from_s3 = make_release(settings, f"s3://{settings.artifact_bucket}/training/job/output/model.tar.gz", silent)
    assert make_release(settings, path, silent) == from_s3


def test_m8_what_a_job_leaves_beside_the_model_does_not_reach_the_release(settings: Settings, tmp_path: Path) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz", **{"code/inference.py": b"raise SystemExit", "model.pt": b"\x80"})
    make_release(settings, path, silent)
    _, members = current_release(settings)
    assert sorted(members) == ["model.json", "model.onnx"]


def test_a_later_job_with_the_same_onnx_gets_the_standing_release(settings: Settings, tmp_path: Path) -> None:
    path, description = artifact(tmp_path / "model.tar.gz")
    first = make_release(settings, path, silent)
    training = json.loads(model_json_bytes(description))["training"] | {"ended_at": "2031-01-01T00:00:00Z"}
    assert make_release(settings, changed(Path(path), training=training), silent) == first


def test_m23_the_same_onnx_with_another_meaning_is_a_conflict(settings: Settings, tmp_path: Path) -> None:
    path, description = artifact(tmp_path / "model.tar.gz")
    first = make_release(settings, path, silent)
    signature = json.loads(model_json_bytes(description))["signature"]
    signature["labels"] = [f"class {label}" for label in signature["labels"]]
    with pytest.raises(FerryError, match="CONFLICT"):
        make_release(settings, changed(Path(path), signature=signature), silent)
    assert read_release(settings.release_path) == first


def test_a_kill_between_archive_and_manifest_is_mended_by_the_same_command(settings: Settings, tmp_path: Path) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz")
    release = make_release(settings, path, silent)
    manifest = f"releases/{release.release_id}/release.json"
    aws.client(settings, "s3").delete_object(
        Bucket=settings.artifact_bucket, Key=manifest, VersionId=stored(settings)[manifest]
    )
    assert make_release(settings, path, silent) == release


def test_m20_a_model_below_its_gate_is_not_published_and_the_last_release_stays(
    settings: Settings, tmp_path: Path
) -> None:
    good, description = artifact(tmp_path / "good.tar.gz")
    release = make_release(settings, good, silent)
    before = stored(settings)
    weak, _ = artifact(tmp_path / "weak.tar.gz", seed=1)
    with pytest.raises(FerryError, match=r"GATE_FAILED .*accuracy 0\.1"):
        make_release(settings, changed(Path(weak), metrics=dict(description.metrics) | {"accuracy": 0.1}), silent)
    assert stored(settings) == before
    assert read_release(settings.release_path) == release


@pytest.mark.parametrize("damage", ["swapped", "flipped", "no onnx"])
def test_m11_m16_a_lying_artifact_is_refused_and_the_last_release_stays(
    settings: Settings, tmp_path: Path, damage: str
) -> None:
    good, _ = artifact(tmp_path / "good.tar.gz")
    release = make_release(settings, good, silent)
    other, _ = artifact(tmp_path / "other.tar.gz", seed=2)
    members = read_archive(Path(other).read_bytes(), other)
    if damage == "swapped":
        members["model.onnx"] = read_archive(Path(good).read_bytes(), good)["model.onnx"]
    elif damage == "flipped":
        members["model.onnx"] = members["model.onnx"][:-1] + bytes([members["model.onnx"][-1] ^ 1])
    else:
        members["model.onnx"] = b"not a model"
    Path(other).write_bytes(write_archive(members))
    with pytest.raises(FerryError, match="MODEL_INVALID"):
        make_release(settings, other, silent)
    assert len(stored(settings)) == 2
    assert read_release(settings.release_path) == release


@pytest.mark.parametrize("execution", ["foo", "", "arn:aws:s3:::bucket"])
def test_a_mistyped_execution_is_refused_before_anything_is_stored(
    settings: Settings, tmp_path: Path, execution: str
) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz")
    with pytest.raises(Refused, match="--execution"):
        make_release(settings, path, silent, origin=Origin(execution=execution))
    assert stored(settings) == {}


def test_an_artifact_cannot_choose_an_easier_gate_by_its_dataset(settings: Settings, tmp_path: Path) -> None:
    path, description = artifact(tmp_path / "model.tar.gz")
    training = json.loads(model_json_bytes(description))["training"] | {"dataset": "digits"}
    other = changed(Path(path), training=training)
    with pytest.raises(Refused, match="trained on 'digits', expected 'mnist'"):
        make_release(settings, other, silent)
    assert stored(settings) == {}


def test_an_artifact_that_is_not_there_says_so(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ARTIFACT_MISSING"):
        make_release(settings, str(tmp_path / "none.tar.gz"), silent)
    with pytest.raises(FerryError, match="ARTIFACT_MISSING"):
        make_release(settings, f"s3://{settings.artifact_bucket}/none.tar.gz", silent)


def test_m11_a_release_whose_files_were_changed_is_not_used(settings: Settings, tmp_path: Path) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz")
    make_release(settings, path, silent)
    archive = settings.release_path.with_name("model.tar.gz")
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(FerryError, match="DIGEST_MISMATCH"):
        current_release(settings)


def test_m13_m14_a_manifest_is_read_strictly(settings: Settings, tmp_path: Path) -> None:
    path, _ = artifact(tmp_path / "model.tar.gz")
    make_release(settings, path, silent)
    good = json.loads(settings.release_path.read_bytes())

    def refused(**fields: Any) -> str:
        with pytest.raises(ReleaseError) as error:
            parse_release(json.dumps(good | fields).encode(), "release.json")
        return str(error.value)

    assert "/schema_version" in refused(schema_version=1)
    assert "/surprise" in refused(surprise=1)
    assert "make it" in refused(release_id="mnist-000000000000")
    assert "/archive/sha256" in refused(archive=good["archive"] | {"sha256": good["archive"]["sha256"].upper()})
    assert "/archive/uri" in refused(archive=good["archive"] | {"uri": "s3://bucket/../x"})
    assert "/archive/uri" in refused(archive=good["archive"] | {"uri": "https://example.com/x"})
    assert "below the gate" in refused(gate=good["gate"] | {"value": 0.0})
    with pytest.raises(ReleaseError, match="duplicate key 'model'"):
        parse_release(b'{"model": "a", "model": "b"}', "release.json")
    for broken in (b"", b"{}", b"[]", b"\xff", b"null", b"[" * 100_000):
        with pytest.raises(ReleaseError):
            parse_release(broken, "release.json")


def test_the_local_environment_and_real_accounts_are_never_mixed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = settings.model_copy(update={"local": None})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:5005")
    with pytest.raises(Refused, match="AWS_ENDPOINT_URL"):
        aws.client(real, "s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAREALLOOKING00000")
    monkeypatch.setenv("AWS_PROFILE", "production")
    assert aws.client(settings, "s3").meta.endpoint_url.startswith("http://localhost:")
    emulated = aws.emulator_environment(settings)
    assert "AWS_PROFILE" not in emulated
    assert emulated["AWS_ACCESS_KEY_ID"] == "emulator"


def test_up_after_a_new_release_serves_the_new_one(settings: Settings, tmp_path: Path) -> None:
    try:
        for seed in (0, 1):
            path, _ = artifact(tmp_path / f"{seed}.tar.gz", seed=seed)
            release = make_release(settings, path, silent)
            local.up(settings, ["sagemaker"], silent)
            assert local.status(settings)["release_id"] == release.release_id
    finally:
        local.down(settings, silent)


def test_the_description_survives_the_journey(settings: Settings, tmp_path: Path) -> None:
    path, description = artifact(tmp_path / "model.tar.gz")
    make_release(settings, path, silent)
    _, members = current_release(settings)
    assert model_json_bytes(parse_model_json(members["model.json"])) == model_json_bytes(description)
