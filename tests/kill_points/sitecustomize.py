"""Sends its own process a signal right before one of its effects; imported by Python itself, as its folder is on PYTHONPATH.

KILL_POINTS is "LOG:NUMBER:SIGNAL:WHOM". An effect is whatever another process could see: a file or folder made, opened for
writing, renamed or removed, a connection, an HTTP request, a process started or signalled. Each is a line in LOG; before the
one with NUMBER, counted from 1, SIGNAL goes to the process ("self") or to its group ("group"). 0 is never.
"""

import os
import signal
import sys
from typing import Any

_EFFECTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.kill"}
_EFFECTS |= {"subprocess.Popen", "shutil.rmtree", "fcntl.flock", "socket.connect", "socket.getaddrinfo"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _is_effect(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        path, _, flags = arguments
        return bool(flags & _WRITES) and isinstance(path, str | bytes | os.PathLike) and not _is_noise(path)
    if (
        event == "http.client.send"
    ):  # the head of a request; in how many parts its body follows depends on the time of day
        return isinstance(arguments[1], bytes) and b" HTTP/1.1\r\n" in arguments[1]
    if event == "os.kill":
        return bool(arguments[1])  # 0 only asks whether somebody is there
    return event in _EFFECTS and not (arguments and isinstance(arguments[0], str) and _is_noise(arguments[0]))


def _is_noise(path: Any) -> bool:
    """Bytecode, and devices."""
    text = os.fsdecode(path)
    return "__pycache__" in text or text.startswith(("/dev/", "/proc/"))


def _subject(event: str, arguments: tuple[Any, ...]) -> str:
    """What an effect is about, on one line: a path, an address, or the first line of a request."""
    if event == "http.client.send":
        return bytes(arguments[1][:200]).partition(b"\r\n")[0].decode("ascii", "replace")
    subject = arguments[1] if event == "socket.connect" else arguments[0] if arguments else ""
    return str(subject)[:200].replace("\n", " ")


def _watch(log: str, number: int, signal_number: int, whom: str) -> None:
    own, seen = os.getpid(), 0
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC)

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        done = seen == number > 0
        if done or os.getpid() != own or not _is_effect(event, arguments):
            return
        seen += 1
        os.write(lines, f"{event} {_subject(event, arguments)}\n".encode())
        if seen == number:
            (os.killpg if whom == "group" else os.kill)(own, signal_number)

    sys.addaudithook(before)


# Taken out: what the process starts is not watched.
if _given := os.environ.pop("KILL_POINTS", None):
    _log, _number, _signal, _whom = _given.rsplit(":", 3)
    # What a shell starts in the background ignores it, and so would everything below.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _watch(_log, int(_number), int(_signal), _whom)
