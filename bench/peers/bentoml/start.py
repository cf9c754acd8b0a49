"""Becomes `bentoml serve`."""

import os
import sys

os.environ.update(BENTOML_HOME=os.environ["BENCH_FOLDER"], BENTOML_DO_NOT_TRACK="true")
address = ["--host", "127.0.0.1", "--port", os.environ["BENCH_PORT"]]
os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "service:DigitsService", *address])
