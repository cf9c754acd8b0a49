"""Looks at everything that a deployment needs, before it starts: reads only, creates nothing, and is done in ten seconds.

The checks run side by side, each with short timeouts; one that fails keeps no other from its turn, unless that one asks the
same service with the same credentials and would only fail again.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from botocore.exceptions import BotoCoreError, ClientError

from ferry.aws_errors import explain, is_nobody
from ferry.cloud_states import State
from ferry.errors import FerryError, Refused

SECONDS = 9.0

# ok and none-yet let a deployment start; the last three do not. not-checked is neither: nothing is known. set-up is about who
# deploys, from where, and to where: credentials, account, bootstrap, region, quota, a tool; repair and busy about what is there.
Verdict = Literal["ok", "none yet", "not checked", "busy", "repair", "set up"]
BLOCKING = ("busy", "repair", "set up")


@dataclass(frozen=True)
class Finding:
    """What one check found, in words: what is there, what was wanted, and the next command where one is needed."""

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Check:
    """One look at one thing. `needs` names an earlier check of the same cloud, without which this one cannot know anything."""

    cloud: str
    name: str
    look: Callable[[], Finding]
    needs: str | None = None


def of_state(state: State) -> Finding:
    """A state of something deployed, as a finding."""
    if state.readiness == "busy":
        return Finding("busy", f"BUSY {state}")
    return Finding("ok" if state.readiness == "ready" else "repair", str(state))


def refusal(found: Sequence[tuple[Check, Finding]]) -> FerryError | None:
    """What keeps a deployment from starting: Refused where anything has to be set up, as the rest of what was found may be
    another account's; else a FerryError; None where nothing does. It tells the first of those whole and names the others."""
    blocking = [each for each in found if each[1].verdict in BLOCKING]
    if not blocking:
        return None
    decisive = [each for each in blocking if each[1].verdict == "set up"] or blocking
    check, finding = decisive[0]
    others = ", ".join(f"{each.cloud} {each.name}" for each, _ in blocking if each is not check)
    also = f" Also {others}, above." if others else ""
    said = " ".join(finding.text.split()).rstrip(".")
    kind = Refused if finding.verdict == "set up" else FerryError
    return kind(f"{check.cloud} {check.name}: {said}.{also} Then run `ferry preflight` again")


def preflight(checks: Sequence[Check], seconds: float = SECONDS) -> Iterator[tuple[Check, Finding]]:
    """Start all checks, and yield them in their order with what each found; after `seconds` what is not known is said."""
    deadline = monotonic() + seconds
    findings: dict[tuple[str, str], Future[Finding]] = {(check.cloud, check.name): Future() for check in checks}
    for check in checks:
        before = findings[check.cloud, check.needs] if check.needs else None
        # Daemons: one that still waits for a network does not keep the command from ending.
        arguments = (check, before, findings[check.cloud, check.name])
        threading.Thread(target=_run, args=arguments, daemon=True).start()
    for check in checks:
        try:
            yield check, findings[check.cloud, check.name].result(timeout=max(0.0, deadline - monotonic()))
        except NotInTime:
            yield check, Finding("repair", f"no answer within {seconds:g} s; the network, or a proxy, may be why")


def _run(check: Check, before: Future[Finding] | None, finding: "Future[Finding]") -> None:
    try:
        if before is not None and before.result().verdict != "ok":
            finding.set_result(Finding("not checked", f"needs {check.needs} first"))
        else:
            finding.set_result(check.look())
    except (ClientError, BotoCoreError) as error:
        finding.set_result(Finding("set up" if is_nobody(error) else "repair", explain(error)))
    except Refused as error:
        finding.set_result(Finding("set up", str(error)))
    except (FerryError, OSError) as error:
        finding.set_result(Finding("repair", str(error)))
    except Exception as error:  # a fault of ours, which whoever asks for the finding gets to see
        finding.set_exception(error)
