"""What a month costs in each way of hosting, from prices that say where they are from: arithmetic, nothing measured on AWS.

A month has 730 hours, as in AWS's own calculator. Not counted, in every mode alike: S3 requests and storage, logs, keys, the
volumes of instances, network traffic, and instances that automatic scaling adds.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ferry.doors import request_body
from ferry.errors import FerryError, Refused
from ferry.prices import YEARS, Price, Prices
from ferry.release import current_release
from infra.settings import Settings
from model_code.inference.codecs import JSON
from model_code.inference.contract import Request
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond

HOURS = 730
MODES = ("realtime", "serverless", "async", "batch")
# A plan saves "up to 64%" of an instance's price (SageMaker Developer Guide, "Inference cost optimization best practices").
MOST_SAVED = 0.64
_DAYS = HOURS / 24
_SECONDS = 3600
_MILLION = 1_000_000
_GB = 10**9
_REPEATS = 20


@dataclass(frozen=True)
class Traffic:
    """A month: requests, seconds that the container takes for one, bytes of a request and its answer together, and the hours
    of a day in which an asynchronous endpoint that scales to zero has instances."""

    requests: int
    seconds: float
    payload_bytes: int
    busy_hours: float


@dataclass(frozen=True)
class Line:
    """One part of an estimate: what it is for, how it comes about, USD; None where a price is not known.

    `derived` where its price is.
    """

    name: str
    formula: str
    usd: float | None
    derived: bool


@dataclass(frozen=True)
class Saving:
    """A month with a Savings Plan. Without the plan's rate `usd` is None, and it costs `at_least` what AWS's largest
    reduction would leave; None as well where the price without a plan is not known."""

    usd: float | None
    at_least: float | None
    derived: bool


@dataclass(frozen=True)
class Estimate:
    """A month in one mode; `usd` is None where a part is not known. `savings` is the same with a Savings Plan, by years."""

    mode: str
    chosen: bool
    lines: tuple[Line, ...]
    savings: dict[int, Saving]

    @property
    def usd(self) -> float | None:
        return _total(self.lines)

    @property
    def derived(self) -> bool:
        return any(line.derived for line in self.lines)


def estimate(settings: Settings, prices: Prices, traffic: Traffic) -> list[Estimate]:
    """A month in every mode, with the instances and the memory that the settings have for it."""
    found = []
    for mode in MODES:
        lines = {"realtime": _realtime, "serverless": _serverless, "async": _async, "batch": _batch}[mode](
            settings, prices, traffic
        )
        if mode != "batch":
            lines.append(_gateway(prices, traffic))
        savings = _with_plan(settings, prices, lines) if mode == "realtime" else {}
        found.append(Estimate(mode, settings.hosting.mode == mode, tuple(lines), savings))
    return found


def measured(settings: Settings) -> tuple[float, int]:
    """Seconds that the current release takes for one request on this machine, and the bytes of it and its answer.

    The median of 20 golden inputs through the serving core, decoding and encoding included. Raises Refused without a release.
    """
    try:
        _, members = current_release(settings)
    except FerryError as error:
        raise Refused(f"{error}; or give --seconds and --payload-kb, so that nothing has to be measured") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            (Path(folder) / name).write_bytes(content)
        predictor = Predictor.load(Path(folder))
    body = request_body(predictor.description.signature.golden.inputs[:1])
    took = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        answer = respond(predictor, Request(body, JSON, JSON, "cost"))
        took.append(time.perf_counter() - started)
    return statistics.median(took), len(body) + len(answer.body)


def _realtime(settings: Settings, prices: Prices, traffic: Traffic) -> list[Line]:
    return [_instances(settings, prices, HOURS), _data("processed_gb", prices, traffic)]


def _serverless(settings: Settings, prices: Prices, traffic: Traffic) -> list[Line]:
    serverless = settings.hosting.serverless
    memory = serverless.memory_mb / 1024
    busy = traffic.requests * traffic.seconds
    if serverless.provisioned_concurrency is None:
        price = prices.find("usage", "serverless_gb_second")
        formula = f"{traffic.requests:,} requests x {traffic.seconds:.4g} s x {memory:g} GB x {_shown(price)}"
        return [
            _line("compute", formula, price, busy * memory),
            _data("processed_gb", prices, traffic),
        ]
    kept = serverless.provisioned_concurrency * HOURS * _SECONDS
    keep = prices.find("usage", "provisioned_gb_second")
    use = prices.find("usage", "provisioned_duration_gb_second")
    return [
        _line(
            "provisioned",
            f"{serverless.provisioned_concurrency} x {HOURS} h x {_SECONDS} s x {memory:g} GB x {_shown(keep)}",
            keep,
            kept * memory,
        ),
        _line(
            "compute",
            f"{traffic.requests:,} requests x {traffic.seconds:.4g} s x {memory:g} GB x {_shown(use)}",
            use,
            busy * memory,
        ),
        _data("processed_gb", prices, traffic),
    ]


def _async(settings: Settings, prices: Prices, traffic: Traffic) -> list[Line]:
    scaling = settings.hosting.autoscaling
    to_zero = scaling is not None and scaling.min_capacity == 0
    hours = traffic.busy_hours * _DAYS if to_zero else HOURS
    return [_instances(settings, prices, hours), _data("async_gb", prices, traffic)]


def _batch(settings: Settings, prices: Prices, traffic: Traffic) -> list[Line]:
    """Instances work one request at a time, and exist only while they do."""
    price = prices.find("batch", settings.hosting.instance_type)
    hours = traffic.requests * traffic.seconds / _SECONDS
    formula = f"{traffic.requests:,} requests x {traffic.seconds:.4g} s / {_SECONDS} x {_shown(price)}"
    return [_line("instances", formula, price, hours)]


def _instances(settings: Settings, prices: Prices, hours: float) -> Line:
    hosting = settings.hosting
    price = prices.find("hosting", hosting.instance_type)
    formula = f"{hosting.instance_count} x {hosting.instance_type} x {hours:.4g} h x {_shown(price)}"
    return _line("instances", formula, price, hosting.instance_count * hours)


def _data(name: str, prices: Prices, traffic: Traffic) -> Line:
    gigabytes = traffic.requests * traffic.payload_bytes / _GB
    price = prices.find("usage", name)
    return _line("data", f"{gigabytes:.4g} GB x {_shown(price)}", price, gigabytes)


def _gateway(prices: Prices, traffic: Traffic) -> Line:
    price = prices.find("usage", "gateway_million")
    millions = traffic.requests / _MILLION
    return _line("gateway", f"{millions:.4g} million x {_shown(price)}", price, millions)


def _with_plan(settings: Settings, prices: Prices, lines: list[Line]) -> dict[int, Saving]:
    """A real-time endpoint with its instances on a plan: a commitment by the hour fits what runs every hour."""
    hosting, (instances, *rest) = settings.hosting, lines
    found: dict[int, Saving] = {}
    for years in YEARS:
        rate = prices.find("savings", f"{hosting.instance_type} {years}y")
        if rate is None:
            least = None if instances.usd is None else instances.usd * (1 - MOST_SAVED)
            on_plan = Line("instances", "", least, instances.derived)
        else:
            on_plan = _line("instances", "", rate, hosting.instance_count * HOURS)
        total = _total([on_plan, *rest])
        derived = any(line.derived for line in (on_plan, *rest))
        found[years] = Saving(None, total, derived) if rate is None else Saving(total, None, derived)
    return found


def _total(lines: tuple[Line, ...] | list[Line]) -> float | None:
    parts = [line.usd for line in lines]
    return None if None in parts else sum(part for part in parts if part is not None)


def _line(name: str, formula: str, price: Price | None, amount: float) -> Line:
    if price is None:
        return Line(name, formula, None, derived=False)
    return Line(name, formula, price.usd * amount, derived=price.derived is not None)


def _shown(price: Price | None) -> str:
    return "a price that is not known" if price is None else price.shown
