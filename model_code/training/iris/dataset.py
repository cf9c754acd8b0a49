"""The iris dataset as two channels of CSV files: a folder that was named, or the flowers that ship inside scikit-learn."""

from pathlib import Path

from model_code.environment import CHANNEL_FOLDERS
from model_code.training.dataset import Dataset, Report, dataset_name, lay_out
from model_code.training.errors import BadConfiguration
from model_code.training.iris.data import LABELS

_SOURCES = "a folder with train/*.csv and test/*.csv; default: the flowers inside scikit-learn"


def prepare(source: str | None, target: Path, report: Report) -> Dataset:
    """Lay the dataset out below `target`. Raises BadConfiguration for a folder that lacks a channel."""
    return _embedded(target) if source is None else _from_folder(Path(source), target)


def _embedded(target: Path) -> Dataset:
    from sklearn.datasets import load_iris

    iris = load_iris()
    lines = [
        ",".join([str(LABELS[label]), *map(repr, row)])
        for row, label in zip(iris.data.tolist(), iris.target.tolist(), strict=True)
    ]
    # The set is ordered by species, fifty of each: every fifth is held out, ten of each.
    channels = {
        "training": [line for index, line in enumerate(lines) if index % 5],
        "testing": [line for index, line in enumerate(lines) if not index % 5],
    }
    contents = {
        f"{CHANNEL_FOLDERS[channel]}/iris.csv": "".join(f"{line}\n" for line in rows).encode()
        for channel, rows in channels.items()
    }
    return lay_out(contents, target / "iris", "iris", "the 150 iris flowers inside scikit-learn")


def _from_folder(source: Path, target: Path) -> Dataset:
    if not source.is_dir():
        raise BadConfiguration(f"{source}: no such folder", f"Give {_SOURCES}.")
    if source.resolve().is_relative_to(target.resolve()):
        raise BadConfiguration(f"{source}: lies in {target}, which is written to", "Give a folder outside of it.")
    contents: dict[str, bytes] = {}
    for channel in CHANNEL_FOLDERS.values():
        files = {f"{channel}/{path.name}": path.read_bytes() for path in sorted((source / channel).glob("[!.]*.csv"))}
        if not files:
            raise BadConfiguration(f"{source}: no CSV file in {channel}/", f"Give {_SOURCES}.")
        contents |= files
    name = dataset_name(source)
    return lay_out(contents, target / name, name, f"CSV files in {source}")
