"""Composition root: `python app.py aws` for the CDK, `python app.py azure` for CDKTF; each imports its own bindings only.

The environment is `-c env=NAME` (CDK) or FERRY_ENV, the release `-c release=PATH` or what `ferry release` left in place.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from infra.release import Release, ReleaseError, read_release
from infra.settings import ROOT, Settings, SettingsError, load_settings


def aws() -> None:
    """Synthesize Foundation, Image and Training, and for a release also Hosting and, where it has an endpoint, Gateway."""
    _keep_jsii_cache_here()
    import aws_cdk as cdk

    # The CDK CLI passes cdk.json's feature flags itself; read here, they hold without it too.
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = cdk.App(auto_synth=False, context=flags, outdir=os.environ.get("CDK_OUTDIR", "cdk.out"))
    settings = load_settings(app.node.try_get_context("env"))
    given = app.node.try_get_context("release")
    path = Path(given or settings.release_path)
    release = read_release(path) if given or path.exists() else None
    if not release:
        print(f"Hosting and Gateway wait for a release: none at {path}; make one with `ferry release`", file=sys.stderr)
    if settings.hosting.image == "pytorch-dlc":
        print(f"hosting.image is 'pytorch-dlc'; {_dlc_notice()}", file=sys.stderr)
    compose_aws(app, settings, release)
    app.synth()


def _dlc_notice() -> str:
    from infra.aws.inference_image import SUPPORT_ENDED

    return f"AWS ended the support of its PyTorch inference images on {SUPPORT_ENDED}: they get no more patches"


def compose_aws(app: Any, settings: Settings, release: Release | None) -> None:
    """Put the stacks into a cdk.App, in the order of their dependencies."""
    from infra.aws.foundation import FoundationStack
    from infra.aws.image_build import ImageStack
    from infra.aws.training import TrainingStack

    foundation = FoundationStack(app, "Foundation", settings=settings)
    ImageStack(app, "Image", settings=settings, foundation=foundation)
    TrainingStack(app, "Training", settings=settings, foundation=foundation)
    if release:
        from infra.aws.hosting import HostingStack
        from infra.aws.hosting_releases import hosted_releases

        releases = hosted_releases(settings, release)
        hosting = HostingStack(app, "Hosting", settings=settings, foundation=foundation, releases=releases)
        if settings.hosting.mode != "batch":
            from infra.aws.gateway import GatewayStack

            GatewayStack(app, "Gateway", settings=settings, foundation=foundation, hosting=hosting)


def azure() -> None:
    """Synthesize the app that serves one release on Azure."""
    settings = load_settings()
    release = read_release(settings.release_path)
    _keep_jsii_cache_here()
    from infra.azure.stack import synthesize

    synthesize(settings=settings, release=release, package=settings.azure_release_file)


def _keep_jsii_cache_here() -> None:
    """jsii refuses its default, ~/.cache, where a group may write there, as umask 002 leaves it."""
    os.environ.setdefault("JSII_RUNTIME_PACKAGE_CACHE_ROOT", str(ROOT / "build" / "jsii"))


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 with the reason on stderr and nothing synthesized."""
    if arguments not in (["aws"], ["azure"]):
        print("usage: python app.py aws|azure", file=sys.stderr)
        return 2
    try:
        aws() if arguments == ["aws"] else azure()
    except (SettingsError, ReleaseError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
