"""`ferry cost`: the arithmetic against numbers computed by hand, prices with a date and a source, and what is not known."""

import datetime
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ferry import prices as price_module
from ferry.cli import main
from ferry.cost import Estimate, Saving, Traffic, estimate
from ferry.errors import Refused
from ferry.prices import TABLE, Price, Prices, load_prices, update
from infra.settings import ROOT, Settings, load_settings
from tests.local_settings import write_settings
from tests.scripted_aws import answer, connect_to, sent
from tests.scripted_server import Reply, scripted
from tests.serving_models import write_model
from tests.test_invoke import release_here

DAY = datetime.date(2026, 11, 21)


def known(**sections: dict[str, float]) -> Prices:
    """Round prices of a made-up region."""
    table = {
        section: {name: Price(name, usd, DAY, "a test") for name, usd in entries.items()}
        for section, entries in sections.items()
    }
    return Prices("us-east-1", table)


def every_price() -> Prices:
    return known(
        hosting={"ml.c5.large": 0.1},
        batch={"ml.c5.large": 0.2},
        savings={"ml.c5.large 1y": 0.08, "ml.c5.large 3y": 0.05},
        usage={
            "serverless_gb_second": 0.00002,
            "provisioned_gb_second": 0.000005,
            "provisioned_duration_gb_second": 0.00001,
            "processed_gb": 0.016,
            "async_gb": 0.02,
            "gateway_million": 3.5,
        },
    )


def settings_with(tmp_path: Path, hosting: str) -> Settings:
    """A local environment whose [hosting] table is these lines; its instance type is ml.c5.large."""
    path = write_settings(tmp_path)
    path.write_text(path.read_text().replace("[hosting]\n", f"[hosting]\n{hosting}", 1))
    return load_settings(str(path))


def by_mode(settings: Settings, prices: Prices, **traffic: Any) -> dict[str, Estimate]:
    given = {"requests": 2_000_000, "seconds": 0.05, "payload_bytes": 10_000, "busy_hours": 6} | traffic
    return {each.mode: each for each in estimate(settings, prices, Traffic(**given))}


def test_a_month_is_what_a_pencil_says(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, "instance_count = 2\n")
    found = by_mode(settings, every_price())
    # 2 x 730 h x 0.1 = 146; 2,000,000 x 10 kB = 20 GB x 0.016 = 0.32; 2 million x 3.5 = 7.
    assert found["realtime"].usd == pytest.approx(146 + 0.32 + 7)
    # 2,000,000 x 0.05 s = 100,000 s x 2 GB x 0.00002 = 4.
    assert found["serverless"].usd == pytest.approx(4 + 0.32 + 7)
    # The same instances all month, as nothing scales; 20 GB x 0.02 = 0.4.
    assert found["async"].usd == pytest.approx(146 + 0.4 + 7)
    # 100,000 s / 3600 x 0.2 = 5.5556; no gateway.
    assert found["batch"].usd == pytest.approx(100_000 / 3600 * 0.2)
    # A plan is for the instances: 2 x 730 x 0.08 = 116.8, and x 0.05 = 73.
    one, three = found["realtime"].savings[1], found["realtime"].savings[3]
    assert [one.usd, three.usd] == pytest.approx([116.8 + 7.32, 73 + 7.32])
    assert {one.at_least, three.at_least} == {None}
    assert not any(each.derived for each in (*found.values(), one, three))
    assert [each.mode for each in found.values() if each.chosen] == ["realtime"]


def test_an_asynchronous_endpoint_that_scales_to_zero_costs_its_busy_hours(tmp_path: Path) -> None:
    tables = 'mode = "async"\n[hosting.autoscaling]\nmin_capacity = 0\n[hosting.alarms]\n'
    path = write_settings(tmp_path)
    text = path.read_text().replace(
        '[hosting]\ninstance_type = "ml.c5.large"\n', '[hosting]\ninstance_type = "ml.c5.large"\n' + tables
    )
    path.write_text(text)
    found = by_mode(load_settings(str(path)), every_price())
    # 730 / 24 days x 6 h x 0.1 = 18.25.
    assert found["async"].lines[0].usd == pytest.approx(18.25)
    assert found["async"].chosen


def test_provisioned_concurrency_is_paid_for_while_it_waits_and_again_while_it_answers(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.write_text(path.read_text() + "\n[hosting.serverless]\nprovisioned_concurrency = 1\nmemory_mb = 4096\n")
    found = by_mode(load_settings(str(path)), every_price())
    # 730 x 3600 s x 4 GB x 0.000005 = 52.56; 100,000 s x 4 GB x 0.00001 = 4.
    assert [line.usd for line in found["serverless"].lines] == pytest.approx([52.56, 4, 0.32, 7])


def test_an_unknown_price_makes_its_sums_unknown_and_is_named(tmp_path: Path) -> None:
    prices = known(hosting={"ml.c5.large": 0.1}, usage={"processed_gb": 0.016, "gateway_million": 3.5})
    found = by_mode(settings_with(tmp_path, ""), prices)
    assert found["realtime"].usd is not None
    assert [found[mode].usd for mode in ("serverless", "async", "batch")] == [None, None, None]
    assert set(prices.missing) == {"serverless_gb_second", "async_gb", "batch ml.c5.large"}


def test_without_a_plans_rate_the_month_is_bounded_by_the_most_that_aws_takes_off(tmp_path: Path) -> None:
    prices = known(hosting={"ml.c5.large": 0.1}, usage={"processed_gb": 0.016, "gateway_million": 3.5})
    found = by_mode(settings_with(tmp_path, ""), prices)
    # 730 x 0.1 = 73, less 64 % = 26.28; 0.32 of data and 7 of the gateway are no instances.
    assert found["realtime"].savings[1].usd is None
    assert found["realtime"].savings[1].at_least == pytest.approx(26.28 + 7.32)
    assert found["realtime"].savings[3] == found["realtime"].savings[1]
    nothing = by_mode(settings_with(tmp_path / "other", ""), known())
    assert nothing["realtime"].savings[1] == Saving(None, None, derived=False)


def test_a_derived_price_marks_every_sum_that_holds_it_and_no_other(tmp_path: Path) -> None:
    table = {
        "hosting": {"ml.c5.large": Price("ml.c5.large", 0.1, DAY, derived="twice another")},
        "savings": {"ml.c5.large 1y": Price("ml.c5.large 1y", 0.08, DAY, "a test")},
        "usage": {name: Price(name, 0.016, DAY, "a test") for name in ("processed_gb", "gateway_million", "async_gb")},
    }
    table["usage"]["serverless_gb_second"] = Price("serverless_gb_second", 0.00002, DAY, "a test")
    found = by_mode(settings_with(tmp_path, ""), Prices("us-east-1", table))
    assert [line.derived for line in found["realtime"].lines] == [True, False, False]
    assert {mode: each.derived for mode, each in found.items()} == {
        "realtime": True,
        "serverless": False,
        "async": True,
        "batch": False,
    }
    # The plan of one year has a rate of its own; that of three years is bounded from the derived price.
    assert [found["realtime"].savings[years].derived for years in (1, 3)] == [False, True]


def shipped() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads(TABLE.read_text())


def test_every_price_that_comes_with_ferry_has_a_day_and_a_source_or_a_derivation() -> None:
    regions = shipped()
    assert {"us-east-1", "eu-west-1"} <= set(regions)
    entries = [entry for sections in regions.values() for prices in sections.values() for entry in prices.values()]
    assert entries
    for entry in entries:
        assert {"usd", "date"} <= set(entry) <= {"usd", "date", "source", "derived"}
        assert entry["usd"] > 0
        assert isinstance(entry["date"], datetime.date)
        assert entry.get("derived") or entry["source"].startswith(("https://", "AWS Price List API"))


def test_the_derived_prices_are_what_their_derivations_say() -> None:
    usd = {
        (region, section, name): entry["usd"]
        for region, sections in shipped().items()
        for section, entries in sections.items()
        for name, entry in entries.items()
    }
    hosting = {
        ("us-east-1", "ml.m5.large"): 0.23 / 2,
        ("us-east-1", "ml.c6i.large"): 1.2 * 0.085,
        ("us-east-1", "ml.c6i.xlarge"): 1.2 * 0.17,
        ("eu-west-1", "ml.m5.large"): 0.257 / 2,
        ("eu-west-1", "ml.c5.large"): 1.2 * 0.192 / 2,
        ("eu-west-1", "ml.c5.xlarge"): 1.2 * 0.192,
        ("eu-west-1", "ml.c6i.large"): 1.2 * 0.0912,
        ("eu-west-1", "ml.c6i.xlarge"): 1.2 * 0.1824,
    }
    for (region, name), price in hosting.items():
        assert usd[region, "hosting", name] == pytest.approx(price)
    for (region, section, name), price in usd.items():
        assert section != "batch" or price == usd[region, "hosting", name]
    assert usd["eu-west-1", "usage", "serverless_gb_second"] == pytest.approx(0.00002 * 0.257 / 0.23, rel=1e-3)
    for name in ("async_gb", "gateway_million"):
        assert usd["eu-west-1", "usage", name] == usd["us-east-1", "usage", name]
    # The factor and the halves, where both sides were read.
    assert usd["us-east-1", "hosting", "ml.m5.xlarge"] == pytest.approx(1.2 * 0.192, rel=0.002)
    assert usd["us-east-1", "hosting", "ml.c5.large"] == pytest.approx(1.2 * 0.085)
    assert usd["eu-west-1", "hosting", "ml.m5.xlarge"] == pytest.approx(1.2 * 0.214, rel=0.002)
    assert usd["us-east-1", "hosting", "ml.c5.xlarge"] == 2 * usd["us-east-1", "hosting", "ml.c5.large"]


def ferry(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--env", str(path), "cost", *arguments])


def test_the_table_marks_the_chosen_mode_and_names_the_price_behind_it(tmp_path: Path) -> None:
    said = ferry(write_settings(tmp_path), "--seconds", "0.05", "--payload-kb", "10", "--today", "2022-11-01")
    assert said.exit_code == 0, said.stderr
    assert "realtime *" in said.stdout
    assert "1 x ml.c5.large x 730 h x $0.102 = 74.46" in said.stdout
    assert re.search(r"hosting ml\.c5\.large +\$0\.102  2022-10-26 +\[1\]\n", said.stdout)
    assert "[1] aws-samples/sagemaker-serverless-inference-benchmarking: cost_constants.py\n" in said.stdout
    assert said.stderr == ""
    assert max(map(len, said.stdout.splitlines())) <= 100


def environment(tmp_path: Path, name: str) -> Path:
    """The settings of an environment that comes with the repository, with a build folder of their own."""
    path = tmp_path / f"{name}.toml"
    path.write_text(f'build_dir = "{tmp_path / "build"}"\n' + (ROOT / "config" / path.name).read_text())
    return path


@pytest.mark.parametrize(
    ("name", "instances", "total", "least"),
    [
        # 730 h x 1.2 x 0.0912; 80 GB x 0.016 = 1.28; 10 million x 3.5 = 35; 79.8912 x 0.36 = 28.7608 on a plan.
        ("dev", "~79.89", "~116.17", "from ~65.04"),
        # 2 x 730 h x 1.2 x 0.1824 = 319.5648; 319.5648 x 0.36 = 115.0433 on a plan.
        ("prod", "~319.56", "~355.84", "from ~151.32"),
    ],
)
def test_a_month_is_estimated_from_derived_prices_and_says_so(
    tmp_path: Path, name: str, instances: str, total: str, least: str
) -> None:
    arguments = ("--requests", "10000000", "--seconds", "0.002", "--payload-kb", "8", "--today", "2026-11-21")
    said = ferry(environment(tmp_path, name), *arguments)
    assert said.exit_code == 0, said.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in said.stdout.splitlines() if "│" in line]
    column = {row[1]: row[2] for row in rows}
    assert column == {
        "instances": instances,
        "data": "1.28",
        "gateway": "~35.00",
        "compute": "",
        "all": total,
        "with a 1-year Savings Plan": least,
        "with a 3-year Savings Plan": least,
    }
    assert "~ holds a price that is derived from others" in said.stdout
    assert '"up to 64%"' in said.stdout
    assert re.search(r"hosting ml\.c6i\.x?large +~\$\S+  2024-08-26 old  1\.2 x \$\S+ of EC2's c6i", said.stdout)
    assert said.stderr.splitlines() == [
        "5 of 6 prices are older than 180 days, the oldest (serverless_gb_second) 1487; "
        "`ferry cost --update` reads what AWS lists"
    ]


def test_a_script_reads_what_is_derived_and_what_is_a_bound(tmp_path: Path) -> None:
    arguments = ("--requests", "10000000", "--seconds", "0.002", "--payload-kb", "8", "--json")
    document = json.loads(ferry(environment(tmp_path, "dev"), *arguments).stdout)
    realtime = document["estimates"][0]
    assert (realtime["usd"], realtime["derived"]) == (pytest.approx(79.8912 + 1.28 + 35), True)
    bound = {"usd": None, "at_least": pytest.approx(79.8912 * 0.36 + 36.28), "derived": True}
    assert realtime["savings"] == {"1": bound, "3": bound}
    assert document["missing"] == []
    price = document["prices"]["hosting ml.c6i.large"]
    assert price["derived"] is True
    assert price["derivation"] == "1.2 x $0.0912 of EC2's c6i.large"
    assert price["source"].startswith("https://github.com/skypilot-org/skypilot-catalog/blob/")
    assert document["prices"]["processed_gb"]["derived"] is False


def test_old_prices_are_told_in_a_line_with_the_age_of_the_oldest(tmp_path: Path) -> None:
    arguments = ("--seconds", "0.05", "--payload-kb", "10", "--json", "--today")
    path = write_settings(tmp_path)
    said = ferry(path, *arguments, "2023-04-25")
    assert said.stderr == "4 of 6 prices are older than 180 days, the oldest (hosting ml.c5.large) 181\n"
    document = json.loads(said.stdout)
    names = ("hosting ml.c5.large", "processed_gb", "serverless_gb_second", "batch ml.c5.large")
    assert document["old"] == dict.fromkeys(names, 181)
    assert document["estimates"][0]["usd"] == pytest.approx(730 * 0.102 + 10 * 0.016 + 3.5)
    said = ferry(path, *arguments, "2023-04-24")
    assert json.loads(said.stdout)["old"] == {}
    assert said.stderr == ""


def test_a_chosen_mode_without_its_price_ends_with_1_and_says_what_is_missing(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.write_text(path.read_text().replace("ml.c5.large", "ml.c7i.large"))
    said = ferry(path, "--seconds", "0.05", "--payload-kb", "10")
    assert said.exit_code == 1
    assert "not known in us-east-1: the price of hosting ml.c7i.large, batch ml.c7i.large; " in said.stderr
    assert f"{tmp_path / 'build' / 'prices.toml'} takes others by hand" in said.stderr
    assert "--update" not in said.stderr, "a local environment has no account that could ask"
    assert "mode = 'realtime' cannot be estimated" in said.stderr


def test_without_options_the_release_is_measured_and_without_a_release_they_are_asked_for(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    refused = ferry(path)
    assert refused.exit_code == 2
    assert "give --seconds and --payload-kb" in refused.stderr
    write_model(tmp_path / "model")
    members = {name: (tmp_path / "model" / name).read_bytes() for name in ("model.json", "model.onnx")}
    release_here(load_settings(str(path)), members)
    said = json.loads(ferry(path, "--json").stdout)
    assert 0 < said["traffic"]["seconds"] < 1
    assert said["traffic"]["payload_bytes"] > 1000


def product(usage_type: str, usd: str, text: str) -> str:
    dimension = {"description": text, "pricePerUnit": {"USD": usd}, "beginRange": "0", "unit": "Hrs"}
    terms = {"OnDemand": {"SKU.T": {"priceDimensions": {"SKU.T.D": dimension}}}}
    return json.dumps({"product": {"attributes": {"usagetype": usage_type}}, "terms": terms})


def plan(years: int, rate: str) -> dict[str, Any]:
    offering = {"paymentOption": "No Upfront", "planType": "SageMaker", "durationSeconds": years * 31_536_000}
    return {"savingsPlanOffering": offering, "rate": rate, "unit": "Hrs", "usageType": "EU-Host:ml.c6i.large"}


def test_update_reads_prices_and_plans_from_aws_and_they_win_over_the_table(tmp_path: Path) -> None:
    settings = load_settings(str(environment(tmp_path, "dev")))
    assert load_prices(settings).find("hosting", "ml.c6i.large") != 0.1094, "derived, until AWS is asked"
    sagemaker = answer(
        {
            "PriceList": [
                product(
                    "EU-Host:ml.c6i.large", "0.1094000000", "$0.1094 per Hosting ml.c6i.large hour in EU (Ireland)"
                ),
                product(
                    "EU-Tsform:ml.c6i.large", "0.11", "$0.11 per BatchTransform Job ml.c6i.large hour in EU (Ireland)"
                ),
                product("EU-Train:ml.c6i.large", "9", "$9 per Training ml.c6i.large hour in EU (Ireland)"),
            ]
        }
    )
    gateway = answer({"PriceList": [product("EU-ApiGatewayRequest", "0.0000035000", "$3.50/million requests")]})
    rates = Reply(200, json.dumps({"searchResults": [plan(1, "0.08"), plan(3, "0.05")]}).encode())
    replies = {"GetProducts": [sagemaker, gateway], "POST /DescribeSavingsPlansOfferingRates": [rates]}
    said: list[str] = []
    with scripted(replies) as server:
        written = update(settings, said.append, today=DAY, connect=connect_to(server))
    assert [request["ServiceCode"] for request in sent(server, "GetProducts")] == [
        "AmazonSageMaker",
        "AmazonApiGateway",
    ]
    assert written == tmp_path / "build" / "prices.toml"
    prices = load_prices(settings)
    names = [
        ("hosting", "ml.c6i.large"),
        ("batch", "ml.c6i.large"),
        ("savings", "ml.c6i.large 3y"),
        ("usage", "gateway_million"),
    ]
    read = [price for name in names if (price := prices.find(*name))]
    assert [price.usd for price in read] == pytest.approx([0.1094, 0.11, 0.05, 3.5])
    assert [price.derived for price in read] == [None] * 4
    assert str(read[0].source).endswith("usage type EU-Host:ml.c6i.large")
    found = by_mode(settings, prices, requests=1_000_000)
    # 730 h x 0.05 = 36.5; 10 GB x 0.016 = 0.16; a million calls 3.5: nothing is derived, and the rate is no bound.
    assert found["realtime"].savings[3] == Saving(pytest.approx(36.5 + 0.16 + 3.5), None, derived=False)
    assert not found["realtime"].derived
    # What AWS was not asked for is still the table's.
    assert prices.used["processed_gb"].usd == 0.016


def test_a_second_update_keeps_what_stands_in_the_file_by_hand(tmp_path: Path) -> None:
    settings = load_settings(str(environment(tmp_path, "dev")))
    own = price_module.own_file(settings)
    own.parent.mkdir(parents=True)
    by_hand = '"ml.c7i.large" = { usd = 0.12, date = 2026-11-01, source = "a bill", derived = "half of another" }\n'
    own.write_text(f"[eu-west-1.hosting]\n{by_hand}")
    nothing = answer({"PriceList": []})
    gateway = answer({"PriceList": [product("EU-ApiGatewayRequest", "0.0000035000", "$3.50/million requests")]})
    with scripted({"GetProducts": [nothing, gateway]}) as server:
        update(settings, lambda line: None, today=DAY, connect=connect_to(server))
    assert by_hand in own.read_text()


def test_update_is_for_an_account(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    refused = ferry(path, "--update")
    assert refused.exit_code == 2
    assert "has no AWS account that could ask for prices" in refused.stderr


GOOD = 'usd = 0.1, date = 2026-11-01, source = "a bill"'


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            '[us-east-1.hosting]\n"ml.c5.large" = 0.1',
            r"\[us-east-1\.hosting\] ml\.c5\.large: 0\.1 is no table; a price is",
        ),
        (
            "[us-east-1.usage]\nasync_gb = { usd = 0.1, date = 2026-11-01 }",
            "async_gb: it has neither source nor derived",
        ),
        (
            '[us-east-1.usage]\nasync_gb = { usd = 0.1, date = 2026-11-01, derived = " " }',
            "source or derived says nothing",
        ),
        (f"[us-east-1.usage]\nasync_gb = {{ {GOOD}, derived = true }}", "source or derived says nothing"),
        (f"[us-east-1.usage]\nasync_gb = {{ {GOOD}, derivd = 'x' }}", "no price has derivd"),
        (f"[us-east-1.usage]\nasync_gb = {{ {GOOD.replace('0.1', '-1')} }}", "usd is -1, not a number above 0"),
        (f"[us-east-1.usage]\nasync_gb = {{ {GOOD.replace('0.1', 'nan')} }}", "usd is nan, not a number above 0"),
        (f"[us-east-1.usage]\nasync_gb = {{ {GOOD.replace('0.1', 'true')} }}", "usd is True, not a number above 0"),
        (
            "[us-east-1.usage]\nasync_gb = { usd = 0.1, date = '2026-11-01', source = 'x' }",
            "date is '2026-11-01', not a day like 2026-09-28",
        ),
        (
            f"[us-east-1.hostng]\nx = {{ {GOOD} }}",
            r"\[us-east-1\.hostng\]: a section is hosting, batch, savings, usage",
        ),
        # Another region's entry is as wrong as this one's.
        ("[eu-west-3.usage]\nasync_gb = { usd = 0.1, date = 2026-11-01 }", r"\[eu-west-3\.usage\] async_gb"),
        ("us-east-1 = 3", "us-east-1 is no table; a price stands below"),
        ("[us-east-1]\nhosting = 3", r"us-east-1\.hosting is no table; a price stands below"),
        ("[us-east-1", r"prices\.toml: Expected"),
    ],
)
def test_a_broken_table_is_refused_with_the_place_and_what_is_wrong(tmp_path: Path, text: str, wrong: str) -> None:
    settings = load_settings(str(write_settings(tmp_path)))
    own = price_module.own_file(settings)
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(text)
    with pytest.raises(Refused, match=wrong):
        load_prices(settings)
