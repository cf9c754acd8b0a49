"""The container's HTTP server where it reads a body and answers a constant: what is left when nothing is decoded and no model runs."""

import os
import sys

from model_code.container.balance import Balance
from model_code.container.connection import Connections
from model_code.container.exchange import Exchange, Route
from model_code.container.http_server import serve
from model_code.container.launch import HEADER_SECONDS, MAX_CONNECTIONS, listen
from model_code.container.supervisor import Supervisor
from model_code.container.worker import Worker
from model_code.inference.contract import Response

ANSWER = b'{"digits": [7]}'


class Constant(Worker):
    """Any path, any method."""

    async def _open(self) -> None: ...

    def _route(self, exchange: Exchange) -> Route:
        return Route(_answer, self.limits.body_bytes)


def _answer(exchange: Exchange) -> None:
    exchange.answer(Response(200, ANSWER, {"content-type": "application/json"}))


def main() -> int:
    processes = int(os.environ["BENCH_PROCESSES"])
    listener, balances = listen("127.0.0.1", int(os.environ["BENCH_PORT"])), Balance.of(processes)

    def work(number: int) -> int:
        serve(
            Constant(threads=1),
            listener,
            Connections(MAX_CONNECTIONS, HEADER_SECONDS, balances[number]),
            drain_seconds=1,
        )
        return 0

    return Supervisor(processes, work, listener, drain_seconds=2).run()


if __name__ == "__main__":
    sys.exit(main())
