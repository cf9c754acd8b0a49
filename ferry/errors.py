"""How a `ferry` command fails.

FerryError            something went wrong while working; exit code 1
└── Refused           the command cannot start like this (usage, configuration, wrong target); exit code 2
"""


class FerryError(Exception):
    """A message for people: what was wrong, where, what is allowed, what to do next."""

    exit_code = 1


class Refused(FerryError):
    """Nothing was done."""

    exit_code = 2
