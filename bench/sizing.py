"""The worked example of docs/performance.md: from a report to instances, autoscaling targets and concurrency."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

# The load of the example: requests of one image as JSON, a second.
PEAK, AVERAGE = 2000, 200
UTILISATION = 0.65
# ml.c6i.large, the default of `hosting.instance_type`.
INSTANCE_VCPUS = 2
INSTANCE_MEBIBYTES = 4096
# What its models may take (FERRY_MODEL_MEMORY_MB).
MULTI_MODEL_SHARE = 0.8
# Of `azure.flex.instance_memory_mb = 2048`, its default.
FLEX_CORES = 1
MONTH_SECONDS = 730 * 3600


def example(report: Mapping[str, Any]) -> Iterator[str]:
    """The arithmetic of the page with the report's numbers in it; every number is rounded before it is used again."""
    ours, cores = report["http"]["ours"]["json_1"], len(report["method"]["server_cores"])
    rate, alone = round(ours["c8"]["requests_per_second"]), round(ours["c1"]["p99_ms"], 2)
    core_rate = round(rate / cores)
    hold = round(1000 / core_rate, 2)
    usable = round(core_rate * UTILISATION)
    per_instance = usable * INSTANCE_VCPUS
    instances = math.ceil(PEAK / per_instance)
    yield f"{PEAK:,} requests a second at the peak, {AVERAGE} on average, one image as JSON each. The report has {rate:,} requests a"
    yield f"second on {cores} cores with 8 connections.\n"
    yield f"1. One core: {rate:,} / {cores} = **{core_rate:,} requests a second**; a request holds it for 1,000 / {core_rate:,} = {hold} ms."
    yield f"2. Of that, {UTILISATION:.0%}: {core_rate:,} × {UTILISATION} = **{usable:,} a second and core**."
    yield f"3. Real-time endpoint: {usable:,} × {INSTANCE_VCPUS} vCPUs = {per_instance:,}; {PEAK:,} / {per_instance:,} = **{_count(instances)}** at the"
    yield f"   peak. With one more the loss of one does no harm: `max_capacity = {instances + 1}`."
    yield f"4. Its autoscaling: {per_instance:,} × 60 = **`invocations_per_instance = {per_instance * 60}`**."
    yield f"5. p99 in the container: about 4.6 × {hold} / (1 − {UTILISATION}) = **{4.6 * hold / (1 - UTILISATION):.1f} ms**."
    yield f"6. Serverless instead: the report's p99 with one connection is {alone} ms, so {PEAK:,} × {alone} / 1,000 / 0.7 ="
    yield f"   **`max_concurrency = {math.ceil(PEAK * alone / 1000 / 0.7)}`** with a whole core each; at most 200 are allowed."
    yield f"7. Flex Consumption, {FLEX_CORES} core an instance: {PEAK:,} / {usable * FLEX_CORES:,} = **{_count(math.ceil(PEAK / (usable * FLEX_CORES)))}** at"
    yield "   least: the Functions host takes its part, which no report here knows."
    yield from _models(report["scale"])
    month = AVERAGE * MONTH_SECONDS
    yield f"9. A month: {AVERAGE} × {MONTH_SECONDS:,} s = {month:,} requests:\n"
    yield "```"
    yield f"ferry --env dev cost --requests {month} --seconds {hold / 1000:.5f}"
    yield "```"


def _models(scale: Mapping[str, Any]) -> Iterator[str]:
    first, each = scale["models"]["1"]["mebibytes"], scale["mebibytes_per_model"]
    if each is None:
        return  # there was memory for one model only
    first, each = round(first), round(each, 1)
    room = round(MULTI_MODEL_SHARE * INSTANCE_MEBIBYTES)
    yield f"8. Many models in one container of {INSTANCE_MEBIBYTES:,} MiB, of which they get {MULTI_MODEL_SHARE:.0%}: the first takes {first} MiB, each"
    yield f"   further {each}: ({room:,} − {first}) / {each} + 1 = **{math.floor((room - first) / each) + 1} models**."


def _count(instances: int) -> str:
    return f"{instances} instance{'s' * (instances != 1)}"
