"""The end of a CloudWatch log, read again and again."""

from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from ferry.console import Report


@dataclass
class LogTail:
    """The lines of the streams of one group whose names begin with `prefix`, each reported once."""

    logs: Any
    group: str
    prefix: str
    report: Report
    tokens: dict[str, str] = field(default_factory=dict)
    readable: bool = True

    def look(self) -> None:
        """Report the lines since the last look; a log that is not there yet, or may not be read, ends nothing."""
        try:
            for stream in self._streams() if self.readable else []:
                self._read(stream)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "AccessDeniedException":
                self.readable = False
                said = error.response["Error"]["Message"]
                self.report(f"  the log {self.group}/{self.prefix} may not be read: {said}")
            elif code != "ResourceNotFoundException":
                raise

    def _streams(self) -> list[str]:
        answer = self.logs.describe_log_streams(logGroupName=self.group, logStreamNamePrefix=self.prefix)
        return [stream["logStreamName"] for stream in answer["logStreams"]]

    def _read(self, stream: str) -> None:
        # The token comes back unchanged at the stream's end.
        while True:
            token = self.tokens.get(stream)
            answer = self.logs.get_log_events(
                logGroupName=self.group,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            for event in answer["events"]:
                self.report(f"  {event['message'].rstrip()}")
            self.tokens[stream] = answer["nextForwardToken"]
            if answer["nextForwardToken"] == token:
                return
