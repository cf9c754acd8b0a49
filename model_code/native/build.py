"""Compiles arrays.c, for this machine or for the Linux on x86-64 that both clouds run.

    python -m model_code.native.build OUTPUT

The compiler is Zig's, from the Python package ziglang: one wheel, the same on every machine, that compiles for every other one.
The same source gives the same bytes each time.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("arrays.c")
# Where the core looks for it, beside model_code/inference/arrays.py.
LIBRARY = "model_code/inference/libarrays.so"
LINUX_X86_64 = "x86_64-linux-gnu"

_TARGETS = {
    ("linux", "x86_64"): LINUX_X86_64,
    ("linux", "aarch64"): "aarch64-linux-gnu",
    ("darwin", "x86_64"): "x86_64-macos",
    ("darwin", "arm64"): "aarch64-macos",
}
# No instructions but those that every processor of the kind has: what is compiled here runs elsewhere.
_FLAGS = (
    "-mcpu=baseline",
    "-std=c11",
    "-O3",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-shared",
    "-fPIC",
    "-nostdlib",
    "-fno-builtin",
    "-s",
)


class BuildError(Exception):
    """The compiler is missing, or it refused the source."""


def this_machine() -> str:
    """The compiler's name for this machine. Raises BuildError for one that is not known."""
    machine = (sys.platform, platform.machine())
    if machine not in _TARGETS:
        known = ", ".join(" ".join(each) for each in _TARGETS)
        raise BuildError(f"no target for {' '.join(machine)}; known are {known}")
    return _TARGETS[machine]


def compile_library(target: str, *flags: str) -> bytes:
    """A shared library for `target`, compiled with more `flags` where a test wants them. Raises BuildError."""
    with tempfile.TemporaryDirectory(prefix="arrays-") as folder:
        output = Path(folder) / Path(LIBRARY).name
        # Names without folders: macOS's linker writes that of the output into the library.
        command = [sys.executable, *f"-m ziglang cc -target {target}".split(), *_FLAGS, *flags]
        command += ["-o", output.name, str(SOURCE)]
        # Caches of its own, so that nothing is written outside of the folder.
        variables = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        finished = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=folder)
        if finished.returncode != 0:
            raise BuildError(f"{SOURCE.name} was not compiled:\n{finished.stderr}")
        return output.read_bytes()


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m model_code.native.build OUTPUT")
    try:
        library = compile_library(this_machine())
    except BuildError as error:
        raise SystemExit(str(error)) from error
    # A process that serves may have the one before it in its memory: that file has to stay what it is.
    output = Path(sys.argv[1])
    fresh = output.with_name(f"{output.name}.{os.getpid()}")
    fresh.write_bytes(library)
    fresh.replace(output)


if __name__ == "__main__":
    main()
