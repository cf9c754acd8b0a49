"""What one worker process does: accepts connections, answers on them, and ends in order."""

import asyncio
import logging
import signal
import socket
import struct

import uvloop

from model_code.container.connection import Connection, Connections
from model_code.container.worker import Worker

# How often signals and silent connections are looked at.
_TICK_SECONDS = 0.1
# How long after SIGTERM a connection that nobody has asked on is still read: what has arrived by then is answered.
_GRACE_SECONDS = 0.2
# How long a worker that has its share leaves new connections to the others, which may be busy, and how often it looks whether
# they have been taken.
_GIVE_WAY_SECONDS = 0.05
_LOOK_SECONDS = 0.002
# How long nothing is accepted when no more files can be opened.
_NO_FILES_SECONDS = 1.0
_TCPI_UNACKED = 24  # its offset in struct tcp_info, linux/tcp.h

_log = logging.getLogger(__name__)


def serve(worker: Worker, listener: socket.socket, connections: Connections, *, drain_seconds: int) -> None:
    """Answer until SIGTERM or SIGINT; then it stops listening, answers what it has accepted, and returns.

    A worker that replaces another one listens once its model is loaded; the first ones listen at once, and say so while they
    load. Raises what loading raises.
    """
    uvloop.run(_serve(worker, listener, connections, drain_seconds))


async def _serve(worker: Worker, listener: socket.socket, connections: Connections, drain_seconds: int) -> None:
    told_to_end = False

    def end(*_: object) -> None:
        nonlocal told_to_end
        told_to_end = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    opening = asyncio.ensure_future(worker.open())
    if worker.replaces_another:
        await opening
    acceptor = _Acceptor(worker, listener, connections)
    acceptor.start()
    while not (told_to_end or (opening.done() and opening.exception())):
        await asyncio.sleep(_TICK_SECONDS)
        connections.tick()
    acceptor.stop()
    await _drain(connections, drain_seconds)
    if opening.done():
        opening.result()


async def _drain(connections: Connections, seconds: int) -> None:
    await asyncio.sleep(_GRACE_SECONDS)
    connections.end()
    for _ in range(round(seconds / _TICK_SECONDS)):
        if not connections:
            return
        connections.tick()
        await asyncio.sleep(_TICK_SECONDS)


class _Acceptor:
    """Takes connections from the socket that all workers share, so that each has as many: who has its share leaves them to others.

    With a socket for each worker (SO_REUSEPORT) chance would deal them: of eight connections one of two workers gets six or more
    in two cases of seven, and whoever is there waits behind five others.
    """

    def __init__(self, worker: Worker, listener: socket.socket, connections: Connections) -> None:
        self._worker = worker
        self._listener = listener
        self._connections = connections
        self._balance = connections.balance
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._balance.listen()
        self._loop.add_reader(self._listener, self._take_share)

    def stop(self) -> None:
        """Accept whoever has connected already, and close the socket."""
        self._balance.leave()
        self._loop.remove_reader(self._listener)
        while self._accept():
            pass
        # The loop above may have begun to wait, too, where no more files can be opened.
        if self._waiting is not None:
            self._waiting.cancel()
        self._listener.close()

    def _take_share(self) -> None:
        share = self._balance.share(max(1, _arriving(self._listener)))
        if share > 0:
            self._accept_several(share)
            return
        self._loop.remove_reader(self._listener)
        self._give_way(self._loop.time() + _GIVE_WAY_SECONDS)

    def _give_way(self, until: float) -> None:
        self._waiting = self._loop.call_later(_LOOK_SECONDS, self._look_again, until)

    def _look_again(self, until: float) -> None:
        """More may have come meanwhile, some of them this worker's; nobody is left to a worker that does not take them."""
        arriving = _arriving(self._listener)
        share = self._balance.share(arriving)
        if arriving and share <= 0 and self._loop.time() < until:
            self._give_way(until)
            return
        self._listen_again()
        self._accept_several(max(1, share))

    def _listen_again(self) -> None:
        self._waiting = None
        self._loop.add_reader(self._listener, self._take_share)

    def _accept_several(self, most: int) -> None:
        while most > 0 and self._accept():
            most -= 1

    def _accept(self) -> bool:
        """Whether there was a connection that no other worker had taken."""
        try:
            accepted, _ = self._listener.accept()
        # Another worker was quicker, or the client has gone already.
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError:
            _log.exception("a connection could not be accepted")
            if self._waiting is None:
                self._loop.remove_reader(self._listener)
                self._waiting = self._loop.call_later(_NO_FILES_SECONDS, self._listen_again)
            return False
        accepted.setblocking(False)
        connection = Connection(self._worker, self._connections)
        making = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, accepted))
        self._connections.make(connection, making)
        return True


def _arriving(listener: socket.socket) -> int:
    """How many connections wait to be accepted: what ss(8) calls the Recv-Q of a socket that listens."""
    (waiting,) = struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), _TCPI_UNACKED)
    return int(waiting)
