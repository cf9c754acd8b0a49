"""What SageMaker's instance types change about the resources that use them."""

import re

# The families with NVMe storage: a "d" among the letters after the generation (m5d, g4dn, p4de), and the accelerated
# families that have it without saying so.
_LOCAL_STORAGE = re.compile(
    r"^ml\.([a-z]+\d+[a-z]*d[a-z]*|g[5-9][a-z]*|gr\d[a-z]*|p[5-9][a-z0-9-]*|trn\d[a-z]*|dl\d[a-z]*)\."
)


def volume_key(instance_type: str, key_arn: str) -> str | None:
    """The key for the instance's volume, or None where SageMaker refuses one.

    Instance types with local storage encrypt it in hardware, and a request that names a key for them fails
    (CreateTrainingJob ResourceConfig.VolumeKmsKeyId, CreateEndpointConfig KmsKeyId).
    """
    return None if _LOCAL_STORAGE.match(instance_type) else key_arn
