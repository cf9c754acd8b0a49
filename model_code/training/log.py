"""The job's log is its standard output."""

import sys


def report(line: str) -> None:
    """One line into the job's log, at once: CloudWatch has no terminal, and a killed job must not keep lines back."""
    encoding = sys.stdout.encoding or "utf-8"
    # A log in another encoding than UTF-8 must not fail a trained job for the sake of a "×".
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
