"""Packs the handler, writes config.properties and becomes TorchServe in the foreground."""

import os
import socket
import subprocess
import sys
from pathlib import Path

here, folder, bin_folder = Path(__file__).parent, Path(os.environ["BENCH_FOLDER"]), Path(sys.executable).parent
store = folder / "store"
store.mkdir()
# Its frontend starts `python` by name, and picks up torchserve's own tools from there.
os.environ["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
os.environ["LOG_LOCATION"] = os.environ["METRICS_LOCATION"] = str(folder / "logs")
# The model stays where it is: the archive holds the handler alone.
archiver = ["torch-model-archiver", "--model-name", "digits", "--version", "1", "--export-path", str(store)]
subprocess.run([*archiver, "--handler", str(here / "service.py")], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


address = "http://127.0.0.1:{}".format
(folder / "config.properties").write_text(
    f"""inference_address={address(os.environ["BENCH_PORT"])}
management_address={address(free_port())}
metrics_address={address(free_port())}
grpc_inference_port={free_port()}
grpc_management_port={free_port()}
model_store={store}
load_models=digits.mar
default_workers_per_model={os.environ["BENCH_PROCESSES"]}
enable_envvars_config=false
disable_token_authorization=true
"""
)
os.chdir(folder)
os.execvp("torchserve", ["torchserve", "--start", "--foreground", "--ncs", "--ts-config", "config.properties"])
