"""Prices with the day they were read and where: the file beside this module, and what `ferry cost --update` read from AWS.

The Price List answers in us-east-1 whatever region is asked about (AWS Billing User Guide, "Price List Query API").
"""

import datetime
import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from infra.settings import Settings

TABLE = Path(__file__).with_name("prices.toml")
OLD_DAYS = 180
YEARS = (1, 3)
# Below a region, in the order of the file.
_SECTIONS = ("hosting", "batch", "savings", "usage")
_KEYS = {"usd", "date", "source", "derived"}
_PRICE_LIST_REGION = "us-east-1"
_YEAR_SECONDS = 365 * 86400
_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """USD for one unit, when that was read, and where; or how it is `derived`, then of the day of the oldest price in it."""

    name: str
    usd: float
    date: datetime.date
    source: str | None = None
    derived: str | None = None

    @property
    def shown(self) -> str:
        """The amount, with "~" before a derived one."""
        amount = f"{self.usd:.10f}".rstrip("0").rstrip(".")
        return f"{'' if self.derived is None else '~'}${amount}"

    def old(self, today: datetime.date) -> bool:
        """Whether it was read more than OLD_DAYS ago."""
        return (today - self.date).days > OLD_DAYS


class Prices:
    """The prices of one region. What is asked for and not there is remembered, so that it can be told."""

    def __init__(self, region: str, known: dict[str, dict[str, Price]]) -> None:
        self.region = region
        self._known = known
        self.used: dict[str, Price] = {}
        self.missing: list[str] = []

    def find(self, section: str, name: str) -> Price | None:
        """The price of a unit, or None where nobody knows. A plan's rate is never missed: an estimate has a bound for it."""
        price = self._known.get(section, {}).get(name)
        label = name if section == "usage" else f"{section} {name}"
        if price is not None:
            self.used[label] = price
        elif section != "savings" and label not in self.missing:
            self.missing.append(label)
        return price

    def old(self, today: datetime.date) -> dict[str, int]:
        """The age in days of each price that was used and is older than OLD_DAYS, the oldest first."""
        ages = {label: (today - price.date).days for label, price in self.used.items() if price.old(today)}
        return dict(sorted(ages.items(), key=lambda each: -each[1]))


def load_prices(settings: Settings) -> Prices:
    """What is known of the environment's region: its own file wins over the one that comes with ferry."""
    region, own = settings.aws.region, own_file(settings)
    known: dict[str, dict[str, Price]] = {}
    for path in (TABLE, own):
        if path.exists():
            for section, prices in _read(path, region).items():
                known.setdefault(section, {}).update(prices)
    return Prices(region, known)


def own_file(settings: Settings) -> Path:
    """Where the prices of this environment lie that AWS was asked for."""
    return settings.build_path / "prices.toml"


def update(settings: Settings, report: Report, *, today: datetime.date, connect: aws.Connect | None = None) -> Path:
    """Read the prices of the settings' instance types, their Savings Plans and calls of the gateway from AWS; returns the
    file they are now in.

    Needs pricing:GetProducts and savingsplans:DescribeSavingsPlansOfferingRates. Raises Refused in a local environment,
    FerryError where AWS lists none of them.
    """
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} has no AWS account that could ask for prices; use another one"
        )
    connect = connect or _connect
    hosting = settings.hosting
    types = {hosting.instance_type, *({hosting.shadow.instance_type} if hosting.shadow else set())} - {None}
    found: list[tuple[str, Price]] = []
    for instance_type in sorted(str(each) for each in types):
        usage_types: dict[str, str] = {}
        for section, usage_type, usd in _listed(settings, connect(settings, "pricing"), instance_type):
            usage_types[section] = usage_type
            source = f"AWS Price List API, AmazonSageMaker, usage type {usage_type}"
            found.append((section, Price(instance_type, usd, today, source)))
        if "hosting" in usage_types:
            plans = connect(settings, "savingsplans")
            found += [
                ("savings", Price(f"{instance_type} {years}y", usd, today, f"AWS Savings Plans API, {years}-year, no upfront"))
                for years, usd in _plans(settings, plans, usage_types["hosting"])
            ]  # fmt: skip
    for usage_type, usd in _calls(settings, connect(settings, "pricing")):
        source = f"AWS Price List API, AmazonApiGateway, usage type {usage_type}"
        found.append(("usage", Price("gateway_million", usd * _MILLION, today, source)))
    if not found:
        raise FerryError(f"AWS lists no price of {', '.join(sorted(map(str, types)))} in {settings.aws.region}")
    for section, price in found:
        report(f"{section} {price.name}: ${price.usd:g}")
    path = own_file(settings)
    known = _read(path, settings.aws.region) if path.exists() else {}
    for section, price in found:
        known.setdefault(section, {})[price.name] = price
    write_atomically(path, _toml(settings.aws.region, known).encode())
    return path


def _connect(settings: Settings, service: str) -> Any:
    if service == "pricing":
        elsewhere = settings.aws.model_copy(update={"region": _PRICE_LIST_REGION})
        return aws.client(settings.model_copy(update={"aws": elsewhere}), service)
    return aws.client(settings, service)


def _listed(settings: Settings, pricing: Any, instance_type: str) -> Iterator[tuple[str, str, float]]:
    """Section, usage type and USD of an hour of an instance type, as the Price List has it."""
    filters = {"regionCode": settings.aws.region, "instanceName": instance_type}
    pages = pricing.get_paginator("get_products").paginate(
        ServiceCode="AmazonSageMaker",
        Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in filters.items()],
    )
    for product in (json.loads(text) for page in pages for text in page["PriceList"]):
        usage_type = product["product"]["attributes"]["usagetype"]
        for term in product["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                section = (
                    "hosting"
                    if "Host:ml." in usage_type
                    else "batch"
                    if "BatchTransform" in dimension["description"]
                    else None
                )
                if section and (usd := float(dimension["pricePerUnit"]["USD"])) > 0:
                    yield section, usage_type, usd


def _calls(settings: Settings, pricing: Any) -> Iterator[tuple[str, float]]:
    """Usage type and USD of one call of a REST API, in the first tier of a month."""
    pages = pricing.get_paginator("get_products").paginate(
        ServiceCode="AmazonApiGateway",
        Filters=[{"Type": "TERM_MATCH", "Field": "regionCode", "Value": settings.aws.region}],
    )
    for product in (json.loads(text) for page in pages for text in page["PriceList"]):
        usage_type = product["product"]["attributes"].get("usagetype", "")
        for term in product["terms"].get("OnDemand", {}).values() if usage_type.endswith("ApiGatewayRequest") else []:
            for dimension in term["priceDimensions"].values():
                if dimension.get("beginRange") == "0":
                    yield usage_type, float(dimension["pricePerUnit"]["USD"])


def _plans(settings: Settings, savingsplans: Any, usage_type: str) -> Iterator[tuple[int, float]]:
    """Years and USD of an hour, for the plans without an upfront payment."""
    answer = savingsplans.describe_savings_plans_offering_rates(
        savingsPlanTypes=["SageMaker"],
        savingsPlanPaymentOptions=["No Upfront"],
        products=["SageMaker"],
        serviceCodes=["AmazonSageMaker"],
        usageTypes=[usage_type],
        filters=[{"name": "region", "values": [settings.aws.region]}],
    )
    for result in answer["searchResults"]:
        years = result["savingsPlanOffering"]["durationSeconds"] // _YEAR_SECONDS
        if years in YEARS:
            yield years, float(result["rate"])


def _read(path: Path, region: str) -> dict[str, dict[str, Price]]:
    """The prices of a region. Every entry of the file is checked, of other regions too. Raises Refused."""
    try:
        regions = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}") from error
    found: dict[str, dict[str, dict[str, Price]]] = {}
    for name, sections in regions.items():
        for section, entries in _table(path, name, sections).items():
            if section not in _SECTIONS:
                raise Refused(f"{path}: [{name}.{section}]: a section is {', '.join(_SECTIONS)}")
            place = f"{name}.{section}"
            prices = {key: _price(path, place, key, entry) for key, entry in _table(path, place, entries).items()}
            found.setdefault(name, {})[section] = prices
    return found.get(region, {})


def _table(path: Path, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{path}: {place} is no table; a price stands below [<region>.<section>]")
    return value


def _price(path: Path, place: str, name: str, entry: Any) -> Price:
    wrong = _wrong(entry)
    if wrong:
        raise Refused(
            f"{path}: [{place}] {name}: {wrong}; a price is a table with usd, date (a day, without quotes), and source "
            "(where it was read) or derived (how, from which others) or both"
        )
    return Price(name, float(entry["usd"]), entry["date"], entry.get("source"), entry.get("derived"))


def _wrong(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"{entry!r} is no table"
    if unknown := sorted(set(entry) - _KEYS):
        return f"no price has {', '.join(unknown)}"
    if type(entry.get("usd")) not in (int, float) or not 0 < entry["usd"] < math.inf:
        return f"usd is {entry.get('usd')!r}, not a number above 0"
    if type(entry.get("date")) is not datetime.date:
        return f"date is {entry.get('date')!r}, not a day like 2026-09-28"
    reasons = [entry[key] for key in ("source", "derived") if key in entry]
    if not reasons:
        return "it has neither source nor derived"
    if not all(isinstance(reason, str) and reason.strip() for reason in reasons):
        return "source or derived says nothing"
    return None


def _toml(region: str, known: dict[str, dict[str, Price]]) -> str:
    lines = []
    for section in (name for name in _SECTIONS if name in known):
        lines.append(f"[{region}.{section}]")
        for name, price in sorted(known[section].items()):
            entry = f"usd = {price.usd!r}, date = {price.date.isoformat()}"
            for key, reason in (("source", price.source), ("derived", price.derived)):
                entry += "" if reason is None else f", {key} = {json.dumps(reason)}"
            lines.append(f"{json.dumps(name)} = {{ {entry} }}")
        lines.append("")
    return "\n".join(lines)
