"""Objects below an S3 prefix to files below a folder, and back, as SageMaker's jobs move them."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ferry.errors import FerryError


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def list_keys(s3: Any, uri: str) -> list[str]:
    """All keys that begin with the URI's, sorted; S3 itself knows no folders."""
    bucket, prefix = split_uri(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(
        entry["Key"] for page in pages for entry in page.get("Contents", []) if not entry["Key"].endswith("/")
    )


def relative_name(key: str, prefix: str) -> str:
    """What is left of a key below a prefix: its own name where the prefix is the key."""
    return key.removeprefix(prefix).lstrip("/") or Path(key).name


def download(s3: Any, uri: str, target: Path) -> list[Path]:
    """Download every object below an S3 prefix, or the one object that it names, into `target`; returns the files."""
    bucket, prefix = split_uri(uri)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for key in list_keys(s3, uri):
        path = target / relative_name(key, prefix)
        if not path.resolve().is_relative_to(target.resolve()):
            raise FerryError(f"s3://{bucket}/{key}: leads out of {target}; nothing was read from it")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(path))
        files.append(path)
    return files


def upload(s3: Any, folder: Path, uri: str) -> None:
    """Upload every file below a folder, under the same relative names."""
    bucket, prefix = split_uri(uri)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(path), bucket, f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}")
