"""One process of the raw limit: `session.run` and nothing else, one thread.

    python -m bench.raw_run MODEL BODY.npy SECONDS

Loads and warms up, prints "ready", waits for a line, runs for SECONDS and prints images a second.
"""

import sys
import time

import numpy as np
import onnxruntime as ort

from bench.core import one_thread


def main(model: str, body: str, seconds: float) -> None:
    session = ort.InferenceSession(model, one_thread(), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(body)}
    images = len(next(iter(feed.values())))
    for _ in range(20):
        session.run(None, feed)
    print("ready", flush=True)
    sys.stdin.readline()
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        session.run(None, feed)
        runs += 1
    print(runs * images / (time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
