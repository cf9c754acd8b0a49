"""Ray and its Serve controller in this process's tree, until a signal ends it."""

import os
import signal

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from digits import NPY, Digits
from ray import serve
from starlette.requests import Request

processes = int(os.environ["BENCH_PROCESSES"])


@serve.deployment(num_replicas=processes, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=100)
class DigitsDeployment:
    def __init__(self) -> None:
        self.model = Digits()

    async def __call__(self, request: Request) -> dict[str, list[int]]:
        if request.headers["content-type"] == NPY:
            return self.model.answer_npy(await request.body())
        return self.model.answer((await request.json())["data"])


def main() -> None:
    ray.init(
        num_cpus=processes,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["BENCH_FOLDER"],
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(DigitsDeployment.bind(), route_prefix="/invocations")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
