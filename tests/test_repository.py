"""The repository keeps its own promises: who imports whom, and a README that is true."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from ferry.cli import main
from infra.settings import ROOT, Settings
from model_code import environment

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What each part may import besides the standard library. The first pattern that matches a file counts.
IMPORT_TABLE: dict[str, set[str]] = {
    "app.py": {"infra", "aws_cdk"},
    "infra/aws/pipeline_*.py": {
        "infra.aws.pipeline_functions",
        "infra.aws.pipeline_requests",
        "infra.settings",
        "model_code.environment",
    },
    "infra/aws/*": {
        "infra.settings",
        "infra.settings_hosting",
        "infra.release",
        "infra.aws",
        "model_code.environment",
        "aws_cdk",
        "constructs",
    },
    "infra/azure/terraform.py": {"infra.azure.kit", "cdktf", "cdktf_cdktf_provider_azurerm"},
    "infra/azure/*": {
        "infra.settings",
        "infra.settings_azure",
        "infra.release",
        "infra.azure",
        "model_code.environment",
    },
    "infra/*": {
        "infra.settings",
        "infra.settings_azure",
        "infra.settings_hosting",
        "infra.settings_table",
        "infra.release",
        "pydantic",
    },
    "model_code/__init__.py": set(),
    "model_code/environment.py": set(),
    # Pillow decodes image/png and image/jpeg bodies, and nothing else may import it: the first image does, not the cold start.
    "model_code/inference/images.py": {"model_code.inference.errors", "numpy", "PIL"},
    "model_code/inference/*": {"model_code.inference", "model_code.environment", "numpy", "onnxruntime", "simdjson"},
    # It runs where the serving image is compiled, too, which has nothing else of ours.
    "model_code/native/*": set(),
    "model_code/training/*": {
        "model_code.training",
        "model_code.inference",
        "model_code.environment",
        "google.protobuf",
        "numpy",
        "onnx",
        "onnxruntime",
        "PIL",
        "skl2onnx",
        "sklearn",
        "torch",
    },
    "model_code/container/train": {"model_code.training", "model_code.environment"},
    "model_code/container/evaluation.py": {
        "model_code.container",
        "model_code.inference",
        "model_code.environment",
        "model_code.training.errors",
        "model_code.training.evaluate",
        "model_code.training.examples",
        "numpy",
    },
    # What AWS's PyTorch image runs: its toolkit's errors, and the core.
    "model_code/script_mode/*": {"model_code.inference", "model_code.environment", "sagemaker_inference"},
    "model_code/container/*": {
        "model_code.container",
        "model_code.inference",
        "model_code.environment",
        "httptools",
        "uvloop",
    },
    "function_app/*": {"azure.functions", "model_code.inference", "model_code.environment"},
    # The development host runs inside the package's own interpreter: it reaches nothing of ours by name.
    "ferry/functions_host.py": {"azure.functions", "werkzeug"},
    "ferry/*": {
        "ferry",
        "infra.settings",
        "infra.release",
        "infra.aws.image",
        "infra.aws.instance_types",
        "infra.aws.pipeline_requests",
        "infra.aws.script_mode",
        "infra.azure.package",
        "model_code.container.artifact",
        "model_code.container.release_archive",
        "model_code.environment",
        "model_code.inference",
        "model_code.native.build",
        "model_code.training.dataset",
        "model_code.training.errors",
        "model_code.training.examples",
        "azure.core",
        "azure.identity",
        "boto3",
        "botocore",
        "click",
        "moto",
        "numpy",
        "onnx",
        "packaging",
        "PIL",
        "psutil",
        "rich",
        "sagemaker",
        "tomli_w",
        "urllib3",
    },
    # The servers that ours is measured against run in environments of their own, and reach nothing of ours.
    "bench/peers/*": {
        "bentoml",
        "digits",
        "fastapi",
        "flask",
        "litserve",
        "mlserver",
        "numpy",
        "onnxruntime",
        "ray",
        "starlette",
    },
    "bench/*": {
        "bench",
        "ferry.archive",
        "ferry.errors",
        "ferry.package",
        "ferry.processes",
        "infra.release",
        "infra.settings",
        "model_code",
        "aws_cdk",
        "azure.functions",
        "numpy",
        "onnxruntime",
        "PIL",
        "psutil",
        "torch",
    },
}


def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = [Path(name) for name in listed.split("\0") if name]
    executables = {Path("model_code/container") / name for name in ("evaluate", "fetch", "serve", "train")}
    return [path for path in paths if (path.suffix == ".py" or path in executables) and path.parts[0] != "tests"]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they go"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def allowed_for(path: Path) -> set[str]:
    for pattern, allowed in IMPORT_TABLE.items():
        if path.match(pattern) or (pattern.endswith("/*") and str(path).startswith(pattern[:-1])):
            return allowed
    raise AssertionError(f"{path} stands in no row of the import table")


def test_the_walk_sees_the_whole_product() -> None:
    assert len(sources()) > 30


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_only_point_down(path: Path) -> None:
    allowed = allowed_for(path)
    for name in imported(path):
        if name.split(".")[0] in sys.stdlib_module_names:
            continue
        permitted = any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)
        # `from model_code import environment` is the module itself.
        assert permitted, f"{path} imports {name}; it may import {', '.join(sorted(allowed)) or 'the standard library'}"


@pytest.mark.parametrize(
    "module", ["model_code.container.server", "model_code.container.evaluation", "function_app.function_app"]
)
def test_what_serves_never_loads_torch_or_a_cloud_sdk(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "onnx", "boto3", "aws_cdk", "cdktf", "pydantic"} & set(loaded)


def tree_entries() -> list[str]:
    block = re.search(r"```\n(README\.md .*?)```", README, re.DOTALL)
    assert block, "README has no tree"
    entries, folders = [], [""]
    for text in block[1].splitlines():
        if not text.strip() or text.strip().startswith("·"):
            continue
        depth, name = (len(text) - len(text.lstrip())) // 2, text.split()[0]
        folders = folders[: depth + 1]
        entries.append(folders[-1] + name)
        if name.endswith("/"):
            folders.append(folders[-1] + name)
    return entries


def test_every_path_in_the_tree_of_the_readme_exists() -> None:
    entries = tree_entries()
    assert len(entries) > 20
    missing = [entry for entry in entries if not (ROOT / entry).exists()]
    assert missing == []


def test_every_top_level_entry_stands_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split("/")[0] + ("/" if "/" in name else "") for name in listed}
    assert {top for top in tops if not top.startswith(".")} <= set(tree_entries())


def test_every_make_verb_in_the_documents_exists() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    quoted = {verb for path in DOCUMENTS for verb in re.findall(r"\bmake ([a-z-]+)\b(?!s)", code(path))}
    assert quoted >= {"demo", "test"}
    assert quoted <= verbs


def test_every_ferry_command_in_the_documents_exists() -> None:
    quoted = {words for path in DOCUMENTS for words in re.findall(r"\bferry((?: [a-z][a-z-]+)+)", code(path))}
    assert quoted
    for words in quoted:
        command: click.Command = main
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, f"documents name `ferry{words}`"
            command = command.commands[word]


def code(path: Path) -> str:
    """Only what a document shows as code: prose may say `make` what it likes."""
    return "\n".join(re.findall(r"```[a-z]*\n.*?```|`[^`\n]+`", path.read_text(), re.DOTALL))


def test_every_variable_of_ours_is_documented() -> None:
    ours = {value for value in vars(environment).values() if isinstance(value, str) and value.startswith("FERRY_")}
    documented = "".join(path.read_text() for path in DOCUMENTS)
    assert ours
    assert {name for name in ours if name not in documented} == set()


def fields(table: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    for name, field in table.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        yield f"{table.__name__}.{name}", field.description or ("a table" if nested else None)


def test_every_setting_says_what_it_is() -> None:
    tables = [Settings, *Settings.__mro__[1].__subclasses__()]
    undescribed = [name for table in tables for name, description in fields(table) if not description]
    assert len(tables) > 5
    assert undescribed == []


def test_every_command_has_help() -> None:
    def walk(command: click.Command, path: str) -> Iterator[str]:
        if not command.help:
            yield path
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk(inner, f"{path} {name}")

    assert list(walk(main, "ferry")) == []


def test_no_large_file_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    large = [name for name in listed if (ROOT / name).stat().st_size > 600_000]
    assert large == []


def test_the_page_of_promises_and_the_tests_name_the_same_faults() -> None:
    rows = re.findall(
        r"^\| ([HMCTD]\d+) \|.*\| ([^|]*) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE
    )
    promised = {row: set(re.findall(r"`(\w+\.py)`", tests)) for row, tests in rows}
    shown: dict[str, set[str]] = {}
    for path in (ROOT / "tests").glob("test_*.py"):
        for ids in re.findall(r"^def test_((?:[hmctd]\d+_)+)", path.read_text(), re.MULTILINE):
            for row in ids.upper().split("_")[:-1]:
                shown.setdefault(row, set()).add(path.name)
    assert len(rows) == len(promised) > 90
    assert promised == shown
