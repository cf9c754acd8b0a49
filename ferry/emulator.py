"""The AWS emulator: moto's server, made to name SageMaker resources as the template does, and to know two more of them.

moto 5.2 makes up names for endpoints, endpoint configurations and models that a template creates, so that nothing in the
emulated account would have the name that the stacks declare. Which property holds a resource's name is one answer of each
of its classes; here they give it.
"""

import sys
from typing import Any

import moto.server
from moto.sagemaker.models import FakeEndpoint, FakeEndpointConfig, Model

# moto finds the types that a template may hold among the subclasses of its base class: the import makes two more.
import ferry.emulator_resources  # noqa: F401

_NAMED_BY: dict[Any, str] = {FakeEndpoint: "EndpointName", FakeEndpointConfig: "EndpointConfigName", Model: "ModelName"}


def main() -> None:
    """Serve until a signal ends it; the arguments are those of `moto_server`."""
    for resource, name in _NAMED_BY.items():
        resource.cloudformation_name_type = staticmethod(lambda name=name: name)
    moto.server.main(sys.argv[1:])


if __name__ == "__main__":
    main()
