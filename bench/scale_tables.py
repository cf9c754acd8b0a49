"""What report.md says of scale, and of a GPU."""

from collections.abc import Iterator, Mapping
from typing import Any

from bench.tables import table

_WAYS = {
    "session_run": "session.run",
    "npy": "npy",
    "json_images": "JSON, raw pixels",
    "json_data": "JSON, normalised",
    "http_npy": "HTTP, npy",
    "http_json_data": "HTTP, JSON, normalised",
}
_CORE_WAYS = {"session_run": "session.run", "container": "container", "multi_model": "multi-model container"}


def scale_lines(scale: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Scale\n"
    method = scale["method"]
    yield (
        f"Rounds: {method['rounds']}, in one process {method['core_rounds']}; medians; {method['load_generator']}. The load "
        "generator has the cores that a server has not, and shares them where there are no others."
    )
    yield from _batch(scale)
    yield from _cores(scale)
    yield from _models(scale)


def _batch(scale: Mapping[str, Any]) -> Iterator[str]:
    batch, method = scale["batch"], scale["method"]
    yield "\n### Images a second by images in a request\n"
    yield (
        f"In one process on one thread; over HTTP with {len(method['server_cores'])} cores and "
        f"{method['batch_connections']} connections. † is refused.\n"
    )
    ways = {way: title for way, title in _WAYS.items() if way in batch}
    rows = [
        [count, *(_rate(batch[way].get(count, {})) for way in ways)]
        for count in sorted({count for cells in batch.values() for count in cells}, key=int)
    ]
    yield from table(("images", *ways.values()), rows)
    reasons = {cell["skipped"] for cells in batch.values() for cell in cells.values() if "skipped" in cell}
    yield from (f"\n† {reason}" for reason in sorted(reasons))


def _rate(cell: Mapping[str, Any]) -> str:
    return "†" if "skipped" in cell else f"{cell['images_per_second']:.0f}" if cell else "–"


def _cores(scale: Mapping[str, Any]) -> Iterator[str]:
    yield "\n### Cores\n"
    yield (
        f"{scale['method']['connections_a_core']} connections a core; × is over one core; processes count the one that watches "
        "the others.\n"
    )
    rows = []
    for count, cells in scale["cores"].items():
        for way, title in _CORE_WAYS.items():
            cell = cells[way]
            rates = [
                f"{cell[name]['images_per_second']:.0f} ({cell[name]['over_one_core']:.2f} ×)" if name in cell else "–"
                for name in ("json_1", "binary_16")
            ]
            p99 = f"{cell['json_1']['p99_ms']:.1f}" if "p99_ms" in cell["json_1"] else "–"
            served = "processes" in cell
            shape = (
                [str(cell["processes"]), f"{cell['mebibytes']:.0f}", cells["load_generator"]] if served else ["–"] * 3
            )
            rows.append([count, title, *rates, p99, *shape])
    heads = ("cores", "what", "JSON, 1 image: images/s", "npy, 16 images: images/s", "p99 of the first, ms")
    yield from table((*heads, "processes", "MiB (PSS)", "load generator"), rows)
    yield "\n### One multi-model process against two, on the same cores\n"
    rows = [
        [name, f"{cell['requests_per_second']:.0f}", f"{cell['p99_ms']:.1f}", f"{cell['mebibytes']:.0f}"]
        for name, cell in scale["processes"].items()
    ]
    yield from table(("processes", "requests/s, JSON, 1 image", "p99, ms", "MiB (PSS)"), rows)


def _models(scale: Mapping[str, Any]) -> Iterator[str]:
    yield "\n### Models in one container\n"
    added = scale["mebibytes_per_model"]
    each = f"Each model after the first adds {added:.1f} MiB. " if added is not None else ""
    yield f"{each}{scale['method']['models_connections']} connections go round over all models. End: {scale['models_end']}.\n"
    rows = [
        [
            count,
            f"{cell['mebibytes']:.0f}",
            f"{cell['load_milliseconds']:.0f}",
            f"{cell['requests_per_second']:.0f}",
            f"{cell['p99_ms']:.1f}",
            str(cell["errors"]),
        ]
        for count, cell in scale["models"].items()
    ]
    heads = ("models", "MiB (PSS)", "ms to load one", "requests/s, JSON, 1 image", "p99, ms", "errors")
    yield from table(heads, rows)


def gpu_lines(gpu: Mapping[str, Any]) -> Iterator[str]:
    """No goal rests on these."""
    yield f"\n## GPU: {gpu['device'] or 'none'}\n"
    training, inference = gpu["training"], gpu["inference"]
    if "missing" in training:
        yield f"- training: not measured: {training['missing']}"
    else:
        first, second = training["seconds"]
        yield (
            f"- training, torch {training['torch']}: one epoch {second:.1f} s, {first:.1f} s with CUDA's start; "
            f"accuracy {training['accuracy']:.2%}, loss {training['loss']:.4f}"
        )
    if "missing" in inference:
        yield f"- inference: not measured: {inference['missing']}"
        return
    yield "\nONNX Runtime's CUDA execution provider, a plain `session.run`, the way to the device and back included.\n"
    yield from table(
        ("images a run", "images/s"), [(count, f"{cell['images_per_second']:.0f}") for count, cell in inference.items()]
    )
