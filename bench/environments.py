"""Each peer's own virtual environment, with exactly the versions in its requirements.txt. Nothing of it reaches ours."""

import hashlib
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from infra.settings import ROOT

PEERS = Path(__file__).with_name("peers")
BUILD = ROOT / "build" / "bench"

_MARKER = ".ready"


class Missing(Exception):
    """A peer that cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Peer:
    """What peer.toml says: how the peer is called, where it answers, whether it reads npy, what it needs, how it is set."""

    name: str
    title: str
    path: str
    binary: bool
    settings: str
    source: str
    programs: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return PEERS / self.name

    @property
    def requirements(self) -> Path:
        return self.folder / "requirements.txt"

    def pins(self) -> dict[str, str]:
        """Distribution -> version, for each line of requirements.txt."""
        lines = [line for line in self.requirements.read_text().splitlines() if not line.startswith("#")]
        return dict(line.split("==") for line in lines)


def find_peers() -> list[Peer]:
    return [read_peer(path.parent) for path in sorted(PEERS.glob("*/peer.toml"))]


def read_peer(folder: Path) -> Peer:
    table = tomllib.loads((folder / "peer.toml").read_text())
    title = table["title"]
    if "title_without_nginx" in table and not shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin"):
        title = table["title_without_nginx"]
    return Peer(
        name=folder.name,
        title=title,
        path=table["path"],
        binary=table["binary"],
        settings=table["settings"].strip(),
        source=table["source"],
        programs=tuple(table.get("programs", ())),
    )


def build(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made anew when its pins have changed. Raises Missing."""
    for program in peer.programs:
        if not shutil.which(program):
            raise Missing(f"{program} is not installed")
    folder = BUILD / f"env-{peer.name}"
    python = folder / "bin" / "python"
    wanted = hashlib.sha256(sys.version.encode() + peer.requirements.read_bytes()).hexdigest()
    marker = folder / _MARKER
    if not (marker.exists() and marker.read_text() == wanted):
        print(f"{peer.title}: making {folder.relative_to(ROOT)} ...", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "--requirement", str(peer.requirements))
        marker.write_text(wanted)
    return python


def _run(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        errors = [line for line in (finished.stdout + finished.stderr).splitlines() if line.startswith("ERROR")]
        raise Missing(errors[-1] if errors else f"{' '.join(command[1:4])}: exit code {finished.returncode}")
