"""Turns a model artifact into a release: fetch, read by allow-list, verify, gate, pin, store once.

A release is immutable. The first one that is stored for an ONNX file stands: the same file released again, by the same job
or by a later one, gives that first release back. Nothing is published unless everything before it succeeded.
"""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws
from ferry.archive import read_archive, write_archive
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.model_probe import probe_model
from ferry.release_folder import replace_files
from ferry.script_mode import script_mode_archive
from infra.aws.script_mode import script_mode_key
from infra.release import (
    EXECUTION,
    FileDigest,
    Gate,
    Release,
    ReleaseError,
    parse_release,
    read_release,
    release_id,
)
from infra.settings import RELEASES_PREFIX, Settings
from model_code import environment
from model_code.inference.contract import ModelDescription, parse_model_json
from model_code.inference.errors import ModelInvalid

_MAX_ARTIFACT = 2 * 2**30


@dataclass(frozen=True)
class Origin:
    """Where an artifact comes from, as far as its own files do not say it.

    `execution` is the ARN of the pipeline execution that made it, or "local". The others are there for a registered model:
    the ARN of its model package, the sha256 of the manifest of the data that it was trained on, and the accuracy that the
    pipeline's evaluation measured on the testing channel, apart from the training job.
    """

    execution: str = "local"
    model_package: str | None = None
    dataset_manifest_sha256: str | None = None
    evaluated_accuracy: float | None = None


_LOCAL = Origin()


def make_release(
    settings: Settings, artifact: str, report: Report, *, dataset: str | None = None, origin: Origin = _LOCAL
) -> Release:
    """Release the model artifact at `artifact`, a path or an s3:// URI of a model.tar.gz.

    `dataset` is what the model has to be trained on, and names the gate; None is the environment's own. The accuracy that is
    held against the gate is the evaluation's where `origin` has one, else what the training job itself measured. Leaves
    release.json and model.tar.gz in the artifacts bucket below releases/<release id>/ and beside `settings.release_path`.
    Raises FerryError; then whatever was released before still is.
    """
    if not re.fullmatch(EXECUTION, origin.execution):
        raise Refused(
            f"--execution: found {origin.execution!r}; allowed: local, or the ARN of a SageMaker pipeline execution"
        )
    raw = _fetch(settings, artifact)
    report(f"fetched   {artifact}: {len(raw):,} bytes")
    members = read_archive(raw, artifact)
    description = _verify(members, artifact)
    identifier = release_id(description.model, description.onnx.sha256)
    report(f"verified  {identifier}: digests, signature, golden inference")
    gate = _gate(settings, description, artifact, dataset or settings.model.dataset, origin)
    report(f"gate      accuracy {gate.value:.4f}, at least {gate.threshold:.4f} wanted")
    release, archive = _store(settings, description, members, gate, origin)
    lay_in_place(settings, release, archive, report)
    report(f"released  {release.archive.uri}")
    return release


def lay_in_place(settings: Settings, release: Release, archive: bytes, report: Report) -> None:
    """Make a release the current one of this machine: what `cdk deploy` and `ferry package` take.

    With hosting.image = "pytorch-dlc" its script-mode archive is stored before that, where it is not there yet for the code
    of today. Raises FerryError; then the current release is the one before, whole.
    """
    if settings.hosting.image == "pytorch-dlc":
        _store_script_mode(settings, release, archive, report)
    folder = settings.release_path.parent
    files = {settings.release_path.name: release.to_bytes(), environment.ARCHIVE_FILE: archive}
    try:
        replace_files(folder, release.release_id, files)
    except OSError as error:
        raise FerryError(
            f"{error.filename or folder}: {error.strerror}; {release.release_id} is stored, but the current release of this "
            "machine is the one before. Make room there, or let this user write there, and run the same command again"
        ) from error


def current_release(settings: Settings) -> tuple[Release, dict[str, bytes]]:
    """The release beside `settings.release_path` and its two members, checked against every digest it names.

    Raises FerryError where there is none or where a byte differs.
    """
    try:
        release = read_release(settings.release_path)
    except ReleaseError as error:
        raise FerryError(str(error)) from error
    path = settings.release_path.with_name(environment.ARCHIVE_FILE)
    try:
        archive = path.read_bytes()
    except OSError as error:
        raise FerryError(f"{path}: cannot be read ({error.strerror}); make it with `ferry release`") from error
    return release, verified_members(release, archive, str(path))


def verified_members(release: Release, archive: bytes, origin: str) -> dict[str, bytes]:
    """model.json and model.onnx out of a released archive, after its digest and theirs were compared with the release."""
    _same(origin, release.archive, archive)
    members = read_archive(archive, origin, exact=True)
    _same(f"{origin}: {environment.MODEL_FILE}", release.onnx, members[environment.MODEL_FILE])
    _same(f"{origin}: {environment.SIGNATURE_FILE}", release.model_json, members[environment.SIGNATURE_FILE])
    return members


def stored_release(raw: bytes, bucket: str, key: str) -> Release:
    """What the manifest under `key` says, which has to be about the archive beside it. Raises ReleaseError."""
    origin = f"s3://{bucket}/{key}"
    release = parse_release(raw, origin)
    folder = origin.removesuffix(f"/{environment.RELEASE_FILE}")
    for pointer, found, allowed in (
        ("/release_id", release.release_id, folder.rpartition("/")[2]),
        ("/archive/uri", release.archive.uri, f"{folder}/{environment.ARCHIVE_FILE}"),
    ):
        if found != allowed:
            raise ReleaseError(f"{origin}: {pointer}: found {found!r}; allowed here: {allowed!r}")
    return release


def pinned_members(s3: Any, release: Release) -> tuple[bytes, dict[str, bytes]]:
    """The archive that a release names, in the version that it names, and its members, every digest compared."""
    uri = urlsplit(release.archive.uri)
    named = f"{release.archive.uri}, version {release.archive.version_id}"
    try:
        answer = s3.get_object(Bucket=uri.netloc, Key=uri.path.lstrip("/"), VersionId=release.archive.version_id)
        content: bytes = answer["Body"].read(release.archive.size + 1)
    except (ClientError, BotoCoreError) as error:
        raise FerryError(f"ARTIFACT_MISSING {named}: {error}; nothing was switched") from error
    return content, verified_members(release, content, named)


def _same(origin: str, expected: FileDigest, content: bytes) -> None:
    actual = _digest(content)
    if (actual.sha256, actual.size) != (expected.sha256, expected.size):
        raise FerryError(
            f"DIGEST_MISMATCH {origin}: expected sha256 {expected.sha256}, {expected.size} bytes; "
            f"found {actual.sha256}, {actual.size} bytes; make the release again with `ferry release`"
        )


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _fetch(settings: Settings, artifact: str) -> bytes:
    if artifact.startswith("s3://"):
        uri = urlsplit(artifact)
        try:
            answer = aws.client(settings, "s3").get_object(Bucket=uri.netloc, Key=uri.path.lstrip("/"))
            _expect_fits(artifact, answer["ContentLength"])
            content: bytes = answer["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise FerryError(f"ARTIFACT_MISSING {artifact}: {error}") from error
        return content
    path = Path(artifact)
    if not path.is_file():
        raise Refused(
            f"ARTIFACT_MISSING {artifact}: no such file; give the model.tar.gz of a training job, or its s3:// URI"
        )
    _expect_fits(artifact, path.stat().st_size)
    return path.read_bytes()


def _expect_fits(origin: str, size: int) -> None:
    if size > _MAX_ARTIFACT:
        raise FerryError(f"TOO_LARGE {origin}: {size:,} bytes; at most {_MAX_ARTIFACT:,}")


def _verify(members: dict[str, bytes], origin: str) -> ModelDescription:
    """Parse the description; compare digests, check the model and run its golden inputs, in a process under limits."""
    try:
        description = parse_model_json(members[environment.SIGNATURE_FILE])
        with tempfile.TemporaryDirectory(prefix="ferry-release-") as folder:
            for name, content in members.items():
                (Path(folder) / name).write_bytes(content)
            probe_model(Path(folder), origin)
    except ModelInvalid as error:
        raise FerryError(f"MODEL_INVALID {origin}: {error}") from error
    except OSError as error:
        place = error.filename or tempfile.gettempdir()
        raise FerryError(
            f"{place}: {error.strerror}; the model could not be tried there, so nothing was published"
        ) from error
    return description


def _gate(settings: Settings, description: ModelDescription, artifact: str, dataset: str, origin: Origin) -> Gate:
    if description.model != settings.model.name:
        raise Refused(
            f"{artifact}: a {description.model!r} model; environment {settings.environment!r} serves {settings.model.name!r}"
        )
    if description.training.dataset != dataset:
        raise Refused(
            f"{artifact}: trained on {description.training.dataset!r}, expected {dataset!r}; "
            "--dataset says what to expect where it is not model.dataset of the settings"
        )
    gate = settings.datasets.get(dataset, settings.datasets[settings.model.dataset]).gate
    measured = description.metrics.get("accuracy")
    accuracy = measured if origin.evaluated_accuracy is None else origin.evaluated_accuracy
    if accuracy is None or not gate <= accuracy <= 1:
        raise FerryError(
            f"GATE_FAILED {artifact}: accuracy {accuracy} on {dataset}, at least {gate} wanted (datasets.{dataset}.gate); "
            "nothing was published"
        )
    return Gate(metric="accuracy", threshold=gate, value=accuracy)


def _store(
    settings: Settings, description: ModelDescription, members: dict[str, bytes], gate: Gate, origin: Origin
) -> tuple[Release, bytes]:
    """Put archive and manifest under names that are written once; returns what stands there, whoever wrote it."""
    identifier = release_id(description.model, description.onnx.sha256)
    prefix = f"{RELEASES_PREFIX}/{identifier}"
    s3 = aws.client(settings, "s3")
    try:
        if settings.local is not None:
            # The emulator creates buckets from a template without its VersioningConfiguration.
            s3.put_bucket_versioning(Bucket=settings.artifact_bucket, VersioningConfiguration={"Status": "Enabled"})
        ours = write_archive(members)
        # What no manifest can say is refused before the archive stands for good; its version is not known yet.
        _manifest(settings, members, ours, "unknown", gate, origin)
        version, archive = _put_once(s3, settings.artifact_bucket, f"{prefix}/{environment.ARCHIVE_FILE}", ours)
        stored = read_archive(archive, f"s3://{settings.artifact_bucket}/{prefix}", exact=True)
        _same_release(prefix, members, stored)
        # An earlier job may have stored the archive: the manifest then describes that archive and that job's record.
        release = _manifest(settings, stored, archive, version, gate, origin)
        _, manifest = _put_once(
            s3, settings.artifact_bucket, f"{prefix}/{environment.RELEASE_FILE}", release.to_bytes()
        )
    except (ClientError, BotoCoreError) as error:
        raise FerryError(
            f"s3://{settings.artifact_bucket}/{prefix}: {error}; nothing was switched, run it again"
        ) from error
    try:
        standing_release = stored_release(manifest, settings.artifact_bucket, f"{prefix}/{environment.RELEASE_FILE}")
    except ReleaseError as error:
        raise FerryError(str(error)) from error
    if standing_release.archive != release.archive:
        # Whatever lies under the archive's name now, the release is the version that its manifest pins.
        archive, _ = pinned_members(s3, standing_release)
    return standing_release, archive


def _manifest(
    settings: Settings, members: dict[str, bytes], archive: bytes, version: str, gate: Gate, origin: Origin
) -> Release:
    """The manifest of an archive and its `members`, as its readers will take it."""
    description = parse_model_json(members[environment.SIGNATURE_FILE])
    identifier = release_id(description.model, description.onnx.sha256)
    uri = f"s3://{settings.artifact_bucket}/{RELEASES_PREFIX}/{identifier}/{environment.ARCHIVE_FILE}"
    document = {
        "schema_version": 2,
        "release_id": identifier,
        "model": description.model,
        "dataset": description.training.dataset,
        "archive": {"uri": uri, "version_id": version, **_digest(archive).model_dump()},
        "onnx": _digest(members[environment.MODEL_FILE]).model_dump(),
        "model_json": _digest(members[environment.SIGNATURE_FILE]).model_dump(),
        "metrics": dict(description.metrics),
        "gate": gate.model_dump(),
        "pipeline_execution": origin.execution,
        "model_package": origin.model_package,
        "dataset_manifest_sha256": origin.dataset_manifest_sha256,
        "source_revision": description.source_revision,
        "training_end_time": description.training.ended_at,
    }
    try:
        return parse_release((json.dumps(document, indent=2) + "\n").encode(), uri)
    except ReleaseError as error:
        raise FerryError(
            f"MODEL_INVALID {error}; what {environment.SIGNATURE_FILE} says has to fit in a manifest"
        ) from error


def _store_script_mode(settings: Settings, release: Release, archive: bytes, report: Report) -> None:
    """Put what AWS's PyTorch image serves under a name that is written once; what stands there has to hold this model."""
    s3, key = aws.client(settings, "s3"), script_mode_key(release.release_id)
    uri = f"s3://{settings.artifact_bucket}/{key}"
    members = read_archive(archive, release.archive.uri, exact=True)
    try:
        standing = _standing(s3, settings.artifact_bucket, key)
        if standing is None:
            _, standing = _put_once(s3, settings.artifact_bucket, key, script_mode_archive(members))
    except (ClientError, BotoCoreError) as error:
        raise FerryError(f"{uri}: {error}; nothing was switched, run it again") from error
    if read_archive(standing, uri) != members:
        raise FerryError(f"CONFLICT {uri}: another model stands there; delete that object, then run it again")
    report(f"script mode {uri}: {len(standing):,} bytes, sha256 {_digest(standing).sha256}")


def _standing(s3: Any, bucket: str, key: str) -> bytes | None:
    """The object under a key, or None where there is none."""
    try:
        content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        return None
    return content


def _put_once(s3: Any, bucket: str, key: str, content: bytes) -> tuple[str, bytes]:
    """Store `content` unless the key exists; returns version id and content of what stands there.

    The condition is checked by S3 itself (If-None-Match), so of two publishers at once exactly one writes.
    """
    try:
        answer = s3.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*", ChecksumAlgorithm="SHA256")
        return _version(answer, bucket), content
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
    standing = s3.get_object(Bucket=bucket, Key=key)
    _expect_fits(f"s3://{bucket}/{key}", standing["ContentLength"])
    return _version(standing, bucket), standing["Body"].read()


def _version(answer: Any, bucket: str) -> str:
    version: str | None = answer.get("VersionId")
    if version is None:
        raise FerryError(
            f"s3://{bucket} keeps no versions, so nothing can be pinned; deploy Foundation, which turns them on"
        )
    return version


def _same_release(prefix: str, ours: dict[str, bytes], standing: dict[str, bytes]) -> None:
    """A standing release may come from another job, but not say something else about the model."""
    if ours[environment.MODEL_FILE] != standing[environment.MODEL_FILE]:
        raise FerryError(f"CONFLICT {prefix}: another ONNX file with the same first 12 digits is released; train again")
    signatures = [json.loads(members[environment.SIGNATURE_FILE])["signature"] for members in (ours, standing)]
    if signatures[0] != signatures[1]:
        raise FerryError(
            f"CONFLICT {prefix}: this ONNX file is already released with another signature (labels, preprocessing or golden "
            "values); a release never changes: train a model that differs, or roll out the standing one"
        )
