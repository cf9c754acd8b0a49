"""The job's log is its standard output."""


def report(line: str) -> None:
    """One line into the job's log, at once: CloudWatch has no terminal, and a killed job must not keep lines back."""
    print(line, flush=True)
