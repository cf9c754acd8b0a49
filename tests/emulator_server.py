"""The AWS emulator inside the process of the tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server


@contextmanager
def emulator_server(port: int = 0) -> Iterator[str]:
    """Serves on loopback until the block ends; gives its URL. Port 0 is a free one.

    moto's own ThreadedMotoServer binds in its thread and waits for that for ever where the port is taken; this raises OSError.
    """
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
