"""How much memory this container has, how much of it this process takes, and how it gives some back. Linux only."""

import ctypes
import os
from pathlib import Path

# Version 2 and version 1 of control groups; both say what `docker run --memory` and SageMaker's instances allow.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_PAGE = os.sysconf("SC_PAGE_SIZE")
# glibc keeps freed memory for later unless it is told to give it back; another C library may not have the call.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def container_bytes() -> int:
    """What the container may take: its limit, or all memory of the machine where it has none."""
    found = [_PAGE * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        try:
            found.append(int(path.read_text()))
        # No such version here; "max" is no limit.
        except (OSError, ValueError):
            continue
    return min(found)


def resident_bytes() -> int:
    """What this process takes now (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def give_back() -> None:
    """Hand memory that was freed back to the system: of an unloaded model of 64 MB all of it stays without this call."""
    if _trim is not None:
        _trim(0)
