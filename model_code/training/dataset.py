"""What a model's dataset.py hands to `ferry data upload`: a folder with the files of both channels."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model_code.environment import CHANNEL_FOLDERS

Report = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    """A folder with `train/` and `test/`; `origin` says in words where the examples come from."""

    name: str
    folder: Path
    origin: str

    def files(self) -> list[Path]:
        """All files of both channels."""
        return sorted(path for path in self.folder.glob("*/*") if path.is_file())


def lay_out(contents: Mapping[str, bytes], folder: Path, name: str, origin: str) -> Dataset:
    """Write `contents`, by their paths below `folder` (`train/...`, `test/...`), in place of the channels that are there."""
    for channel in CHANNEL_FOLDERS.values():  # ours; what else may lie in the folder is not
        shutil.rmtree(folder / channel, ignore_errors=True)
        (folder / channel).mkdir(parents=True)
    for path, content in contents.items():
        (folder / path).write_bytes(content)
    return Dataset(name, folder, origin)


def dataset_name(folder: Path) -> str:
    """The name of a dataset that somebody keeps in `folder`: lower-case letters, digits and hyphens."""
    name = folder.resolve().name.lower()
    kept = "".join(character if character.isascii() and character.isalnum() else "-" for character in name)
    return kept.strip("-")[:64] or "data"
