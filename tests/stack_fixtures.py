"""Settings and a valid release for tests that synthesize stacks; nothing here depends on a training run or on a clock."""

from pathlib import Path

from infra.release import FileDigest, Gate, Release, StoredArchive, release_id
from infra.settings import Settings, load_settings

ONNX_SHA256 = "0f" * 32


def dev_settings() -> Settings:
    """The settings of config/dev.toml."""
    return load_settings("dev")


def make_release(settings: Settings, onnx_sha256: str = ONNX_SHA256) -> Release:
    """A release that `settings` can deploy; another `onnx_sha256` makes another release."""
    identifier = release_id(settings.model.name, onnx_sha256)
    threshold = settings.datasets[settings.model.dataset].gate
    return Release(
        schema_version=2,
        release_id=identifier,
        model=settings.model.name,
        dataset=settings.model.dataset,
        archive=StoredArchive(
            uri=f"s3://{settings.artifact_bucket}/releases/{identifier}/model.tar.gz",
            version_id="3sL4kqtJlcpXroDTDmJrmSpXd3dIbrHY",
            sha256="1e" * 32,
            size=101_322,
        ),
        onnx=FileDigest(sha256=onnx_sha256, size=101_002),
        model_json=FileDigest(sha256="2d" * 32, size=26_004),
        metrics={"accuracy": threshold, "loss": 0.0451},
        gate=Gate(metric="accuracy", threshold=threshold, value=threshold),
        pipeline_execution="local",
        model_package=None,
        dataset_manifest_sha256=None,
        source_revision="unknown",
        training_end_time="2026-01-02T03:04:05Z",
    )


def write_release(release: Release, folder: Path) -> Path:
    """Write release.json below `folder`, as `ferry release` would; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "release.json"
    path.write_bytes(release.to_bytes())
    return path
