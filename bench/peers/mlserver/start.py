"""Writes MLServer's two settings files and becomes it."""

import json
import os
import socket
import sys
from pathlib import Path

folder = Path(os.environ["BENCH_FOLDER"])
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    grpc_port = probe.getsockname()[1]
settings = {
    "host": "127.0.0.1",
    "http_port": int(os.environ["BENCH_PORT"]),
    "grpc_port": grpc_port,
    "metrics_endpoint": None,
    "parallel_workers": int(os.environ["BENCH_PROCESSES"]),
    "debug": False,
}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model-settings.json").write_text(json.dumps({"name": "digits", "implementation": "service.DigitsRuntime"}))
mlserver = Path(sys.executable).with_name("mlserver")
os.execv(mlserver, [str(mlserver), "start", str(folder)])
