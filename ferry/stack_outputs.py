"""What a deployed stack of the environment says about itself."""

from typing import Any

from botocore.exceptions import ClientError

from ferry.errors import Refused
from infra.settings import Settings


def stack_output(settings: Settings, cloudformation: Any, stack: str, output: str) -> str:
    """One output of a stack, `stack` as in `cdk deploy STACK`. Raises Refused where it is not deployed, or has none."""
    name = settings.stack(stack.lower())
    try:
        (described,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        # CloudFormation answers a name that it does not know with this code and "does not exist".
        if error.response["Error"]["Code"] != "ValidationError" or "does not exist" not in str(error):
            raise
        raise Refused(f"the stack {name} is not deployed; `cdk deploy {stack}` deploys it") from error
    outputs = {each["OutputKey"]: each["OutputValue"] for each in described.get("Outputs", [])}
    if output not in outputs:
        found = ", ".join(sorted(outputs)) or "none"
        raise Refused(
            f"the stack {name} has no output {output}, but {found}; it was deployed before there was one, or is still being "
            f"deployed: `cdk deploy {stack}`"
        )
    return str(outputs[output])
