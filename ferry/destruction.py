"""What both clouds' deletions have in common: nothing goes before somebody saw the list and agreed."""

from collections.abc import Callable, Sequence

# Takes the cloud's name, what will go and what will stay. Returns when it may go; raises Refused when not.
Ask = Callable[[str, Sequence[str], Sequence[str]], None]
