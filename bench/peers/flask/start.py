"""gunicorn, and nginx before it where there is one: SIGTERM, or the end of either, ends both, as in the sample's `serve`."""

import getpass
import grp
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from string import Template

folder, port = Path(os.environ["BENCH_FOLDER"]), os.environ["BENCH_PORT"]
nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
address = f"unix:{folder}/gunicorn.sock" if nginx else f"127.0.0.1:{port}"
flags = ["--timeout", "60", "-k", "sync", "-b", address, "-w", os.environ["BENCH_PROCESSES"], "--log-level", "warning"]
children = [subprocess.Popen([sys.executable, "-m", "gunicorn", *flags, "service:app"])]
if nginx:
    template = Template(Path(__file__).with_name("nginx.conf").read_text())
    user = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    (folder / "nginx.conf").write_text(template.substitute(folder=folder, port=port, user=user))
    children.append(subprocess.Popen([nginx, "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]))


def end(*_: object) -> None:
    for child in children:
        child.terminate()


signal.signal(signal.SIGTERM, end)
os.wait()
end()
for child in children:
    child.wait()
