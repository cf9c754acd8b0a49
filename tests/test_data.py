"""`ferry data upload`: what each model's dataset is made of, and what the data bucket holds after an upload."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris  # when sklearn is imported it sets variables, for good

from ferry import aws
from ferry.data import prepare, read_test_set, upload
from ferry.errors import FerryError, Refused
from ferry.steps import objects
from infra.settings import ModelSettings, Settings
from tests.emulated_training import emulated
from tests.idx_files import digit_like, idx
from tests.table_files import flowers


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("data")) as settings:
        yield settings


@pytest.fixture
def settings(emulator: Settings, tmp_path: Path) -> Settings:
    """An environment that trains iris, with an empty data bucket and a build folder of the test's own."""
    name = "t" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    model = ModelSettings(name="iris", dataset="iris")
    fresh = emulator.model_copy(update={"build_dir": str(tmp_path / "build"), "environment": name, "model": model})
    aws.client(fresh, "s3").create_bucket(Bucket=fresh.data_bucket)
    return fresh


def with_model(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"model": ModelSettings(name=name, dataset=settings.model.dataset)})


def table(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("_", "/", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".csv").write_text(text)
    return folder


def stored(settings: Settings) -> dict[str, Any]:
    s3 = aws.client(settings, "s3")
    listing = s3.list_objects_v2(Bucket=settings.data_bucket).get("Contents", [])
    return {
        entry["Key"]: s3.get_object(Bucket=settings.data_bucket, Key=entry["Key"])["Body"].read() for entry in listing
    }


# What a dataset is made of.


def test_the_embedded_flowers_are_split_evenly(settings: Settings) -> None:
    dataset = prepare(settings, None, silent)
    assert dataset.name == "iris"
    examples = read_test_set(settings, dataset)
    assert np.bincount(examples.labels).tolist() == [10, 10, 10]
    written = "".join(path.read_text() for path in dataset.files())
    rows = sorted([float(cell) for cell in line.split(",")[1:]] for line in written.splitlines())
    assert rows == sorted(load_iris().data.tolist())


def test_a_folder_of_tables_is_taken_under_its_own_name(settings: Settings, tmp_path: Path) -> None:
    folder = table(tmp_path / "My flowers", train_a=flowers(9, 1), train_b=flowers(9, 2), test_c=flowers(6, 3))
    dataset = prepare(settings, str(folder), silent)
    assert dataset.name == "my-flowers"
    assert sorted(str(path.relative_to(dataset.folder)) for path in dataset.files()) == [
        "test/c.csv", "train/a.csv", "train/b.csv",
    ]  # fmt: skip


def test_a_folder_without_a_channel_is_refused(settings: Settings, tmp_path: Path) -> None:
    folder = table(tmp_path / "half", train_a=flowers(9, 1))
    with pytest.raises(Refused, match=r"no CSV file in test/\. Give a folder with train/\*\.csv and test/\*\.csv"):
        prepare(settings, str(folder), silent)


def test_a_folder_of_images_is_taken_with_raw_and_gzipped_files(settings: Settings, tmp_path: Path) -> None:
    images, labels = digit_like(20, seed=1)
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    mnist = with_model(settings, "mnist")
    examples = read_test_set(mnist, prepare(mnist, str(tmp_path), silent))
    assert examples.inputs.shape == (20, 1, 28, 28)
    assert examples.labels.tolist() == labels.tolist()


def test_an_image_file_that_cannot_be_read_ends_with_1(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(FerryError, match="cannot be read") as error:
        prepare(with_model(settings, "mnist"), str(tmp_path), silent)
    assert error.value.exit_code == 1


def test_an_unknown_model_is_refused_with_the_known_ones(settings: Settings) -> None:
    with pytest.raises(Refused, match=r"model.name is 'roses'; the models in model_code/training: iris, mnist"):
        prepare(with_model(settings, "roses"), None, silent)


# What an upload leaves.


def version(settings: Settings) -> str:
    """The key that announces the newest version."""
    s3 = aws.client(settings, "s3")
    raw = s3.get_object(Bucket=settings.data_bucket, Key=settings.dataset_manifest)["Body"].read()
    return settings.dataset_version(hashlib.sha256(raw).hexdigest())


def test_a_version_lies_below_the_hash_of_its_manifest_which_names_every_file(settings: Settings) -> None:
    uri = upload(settings, prepare(settings, None, silent), silent)
    found = stored(settings)
    raw = found[settings.dataset_manifest]
    assert uri == f"s3://{settings.data_bucket}/{settings.dataset_manifest}"
    assert found[version(settings)] == raw
    manifest, prefix = json.loads(raw), f"datasets/{version(settings)}"
    assert found[f"{prefix}/manifest.json"] == raw
    assert manifest["dataset"] == "iris"
    assert {f"{prefix}/{entry['path']}": entry["sha256"] for entry in manifest["files"]} == {
        key: hashlib.sha256(content).hexdigest() for key, content in found.items() if key.endswith(".csv")
    }


def test_the_input_manifests_of_a_version_and_of_the_newest_name_the_same_files(
    settings: Settings, tmp_path: Path
) -> None:
    upload(settings, prepare(settings, None, silent), silent)
    found, folder = stored(settings), f"s3://{settings.data_bucket}/datasets/{version(settings)}/"
    files = sorted(key.rpartition("/")[2] for key in found if key.endswith(".csv"))
    for place in (f"datasets/{version(settings)}", settings.dataset_prefix):
        (prefix, *named) = json.loads(found[f"{place}/dataset.manifest"])
        assert prefix == {"prefix": folder}
        assert named == [f"test/{files[0]}", f"train/{files[1]}"]
        assert json.loads(found[f"{place}/train.manifest"]) == [{"prefix": f"{folder}train/"}, files[1]]
    s3 = aws.client(settings, "s3")
    uri = f"s3://{settings.data_bucket}/{settings.dataset_prefix}/dataset.manifest"
    got = objects.download(s3, uri, tmp_path / "raw", "ManifestFile")
    assert {path.relative_to(tmp_path / "raw").as_posix(): path.read_bytes() for path in got} == {
        name: found[f"datasets/{version(settings)}/{name}"] for name in named
    }


def test_the_same_data_start_the_pipeline_once(settings: Settings) -> None:
    s3, said = aws.client(settings, "s3"), list[str]()
    dataset = prepare(settings, None, silent)
    upload(settings, dataset, silent)
    before = s3.head_object(Bucket=settings.data_bucket, Key=version(settings))
    upload(settings, dataset, said.append)
    after = s3.head_object(Bucket=settings.data_bucket, Key=version(settings))
    assert after["LastModified"] == before["LastModified"]
    assert [line for line in said if line.endswith("already there")] == said[:2]
    assert "starts no pipeline" in said[-1]


def test_an_upload_touches_no_file_of_another_version(settings: Settings, tmp_path: Path) -> None:
    upload(settings, prepare(settings, None, silent), silent)
    first, earlier = stored(settings), version(settings)
    folder = table(tmp_path / "other", train_a=flowers(9, 1), test_c=flowers(6, 3))
    upload(settings, prepare(settings, str(folder), silent), silent)
    assert version(settings) != earlier
    second = stored(settings)
    kept = {key: content for key, content in first.items() if earlier in key}
    assert len(kept) == 7  # two files, four manifests, what announced it
    assert {key: second[key] for key in kept} == kept


def test_an_upload_that_was_interrupted_has_started_nothing_and_goes_on(settings: Settings) -> None:
    dataset = prepare(settings, None, silent)

    def interrupt(line: str) -> None:
        if "train/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(settings, dataset, interrupt)
    assert not any("manifest" in key or key.startswith(settings.dataset_versions) for key in stored(settings))
    said: list[str] = []
    upload(settings, dataset, said.append)
    assert sum(line.endswith("already there") for line in said) == 2
    assert version(settings) in stored(settings)


def test_a_file_that_changes_while_it_is_uploaded_starts_nothing(settings: Settings) -> None:
    dataset = prepare(settings, None, silent)
    first, second = dataset.files()

    def change(line: str) -> None:
        second.write_bytes(b"other")

    with pytest.raises(FerryError, match=f"{second}: changed while it was uploaded; nothing was started"):
        upload(settings, dataset, change)
    assert [key.rpartition("/")[2] for key in stored(settings)] == [first.name]
