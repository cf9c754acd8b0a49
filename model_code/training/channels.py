"""Finds the files of a channel."""

from pathlib import Path

from model_code.training.errors import BadData


def find_files(folder: Path, channel: str, pattern: str, hint: str) -> list[Path]:
    """The files in `folder` that `pattern` names, sorted, at least one; hidden ones do not count. Raises BadData.

    `hint` says what such a channel holds.
    """
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except (FileNotFoundError, NotADirectoryError) as error:
        siblings = sorted(path.name for path in folder.parent.glob("[!.]*") if path.is_dir())
        raise BadData(
            f"channel {channel!r} is missing; channels found: {listed(siblings)}",
            f"Give the training job an input channel named {channel}.",
        ) from error
    except OSError as error:
        raise BadData(
            f"UNREADABLE channel {channel!r}: {error.strerror}", "Let the job's user read the folder."
        ) from error
    matches = [path for path in files if path.match(pattern)]
    if not matches:
        names = listed([path.name for path in files])
        raise BadData(f"channel {channel!r} has no file like {pattern}; found: {names}", hint)
    return matches


def listed(names: list[str]) -> str:
    """A few names for a message."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"
