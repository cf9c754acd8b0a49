"""The source bundle of a training job in script mode, as the hyperparameters of AWS's training toolkit name it."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ferry.errors import FerryError
from ferry.steps import objects

# sagemaker-training, params.py: the script to run, and the tar.gz in S3 that holds it.
PROGRAM, SOURCE = "sagemaker_program", "sagemaker_submit_directory"


def fetch_source(s3: Any, hyperparameters: Mapping[str, str], folder: Path) -> None:
    """Unpack the bundle into `folder`. Raises FerryError for a member that is no file, or that leads out of the folder."""
    bucket, key = objects.split_uri(hyperparameters[SOURCE])
    bundle = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:gz") as archive:
        for member in archive:
            path = folder / member.name
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or not path.resolve().is_relative_to(folder.resolve()):
                raise FerryError(f"UNSAFE_MEMBER {hyperparameters[SOURCE]}: {member.name!r}; a bundle holds files only")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
