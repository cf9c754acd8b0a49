"""What cdk-nag reported of a synthesized app, and what the app acknowledges."""

import json
from pathlib import Path
from typing import Any


def acknowledged(folder: Path) -> set[tuple[str, str]]:
    """Construct path and rule of everything that the stacks acknowledge."""
    metadata = [json.loads(path.read_bytes()) for path in folder.glob("*.metadata.json")]
    return {
        (path.removeprefix("/"), rule)
        for document in metadata
        for path, entries in document.items()
        for entry in entries
        if entry["type"] == "aws:cdk:acknowledged-rules"
        for rule in entry["data"]
    }


def nag_reports(folder: Path) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = json.loads((folder / "validation-report.json").read_bytes())["pluginReports"]
    return reports
