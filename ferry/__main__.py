"""The command `ferry`, from its first moment on."""

import signal


def main() -> None:
    """Import the command line and run it.

    An interruption waits until all is imported: pydantic's compiled code drops one that comes while it defines a model.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    from ferry.cli import main as command

    command()


if __name__ == "__main__":
    main()
