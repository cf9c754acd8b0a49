"""What every table of the settings is made of: the base of all tables, texts that belong in none of them, and what AWS knows
by name. The names are lists here, because synth asks no network; a new region or instance type is an edit of its list.
"""

import difflib
import re
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s.]+$", max_length=254)]

# The regions of the partitions aws, aws-cn and aws-us-gov that have SageMaker, as botocore lists them.
REGIONS = frozenset(
    """
    af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2 ap-southeast-1
    ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 ca-central-1 ca-west-1
    cn-north-1 cn-northwest-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3
    il-central-1 me-central-1 me-south-1 mx-central-1 sa-east-1 us-east-1 us-east-2 us-gov-east-1 us-gov-west-1 us-west-1
    us-west-2
    """.split()  # noqa: SIM905
)

Use = Literal["endpoint", "training", "processing", "transform"]
# Uses by their first letter, transform as b; families; sizes: the enumerations ProductionVariantInstanceType,
# TrainingInstanceType, ProcessingInstanceType and TransformInstanceType of SageMaker's API, in botocore's model of it.
_INSTANCE_TYPES = """
    e    c4 c5 : large
    etpb c4 : xlarge 2xlarge 4xlarge 8xlarge
    etpb c5 : xlarge 2xlarge 4xlarge 9xlarge 18xlarge
    e    c5d : large xlarge 2xlarge 4xlarge 9xlarge 18xlarge
    t    c5n : xlarge 2xlarge 4xlarge 9xlarge 18xlarge
    e    c6g c6gd c6gn c7g m6g m6gd r6g r6gd : large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
    eb   c6i : large
    etpb c6i : xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
    e    c6in : large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
    etpb c7i m7i r7i : large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
    tp   c7i-flex c8i-flex : xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
    e    c8g m8g r8g : medium large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
    tp   c8i : xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge 96xlarge
    e    dl1 : 24xlarge
    etpb g4dn : xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
    etpb g5 g6 g6e : xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge
    etp  g7 g7e : 2xlarge 4xlarge 8xlarge 12xlarge 24xlarge 48xlarge
    e    inf1 : xlarge 2xlarge 6xlarge 24xlarge
    eb   inf2 : xlarge 8xlarge 24xlarge 48xlarge
    etpb m4 : xlarge 2xlarge 4xlarge 10xlarge 16xlarge
    etpb m5 : large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
    e    m5d : large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
    etpb m6i r6i : large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge
    tp   m7i-flex m8i-flex r8i-flex : large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
    tp   m8i r8i : large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge 48xlarge 96xlarge
    etpb p2 : xlarge 8xlarge 16xlarge
    etpb p3 : 2xlarge 8xlarge 16xlarge
    t    p3dn : 24xlarge
    et   p4d p4de : 24xlarge
    et   p5 p5e p5en p6-b200 p6-b300 trn2 : 48xlarge
    etp  p5 : 4xlarge
    et   p6e-gb200 : 36xlarge
    etp  r5 r5d : large xlarge 2xlarge 4xlarge 12xlarge 24xlarge
    tp   r5 r5d : 8xlarge 16xlarge
    e    r7gd : medium large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge
    e    t2 : medium large xlarge 2xlarge
    tp   t3 : medium large xlarge 2xlarge
    etb  trn1 : 2xlarge 32xlarge
    et   trn1n : 32xlarge
"""
_LETTERS: dict[str, Use] = {"e": "endpoint", "t": "training", "p": "processing", "b": "transform"}


def _instance_types() -> dict[Use, frozenset[str]]:
    found: dict[Use, set[str]] = {use: set() for use in _LETTERS.values()}
    for line in _INSTANCE_TYPES.strip().splitlines():
        head, sizes = line.split(":")
        letters, *families = head.split()
        for letter in letters:
            found[_LETTERS[letter]] |= {f"ml.{family}.{size}" for family in families for size in sizes.split()}
    return {use: frozenset(types) for use, types in found.items()}


INSTANCE_TYPES = _instance_types()

# What no settings file holds: it is read by whoever reads the repository, the templates or DescribeTrainingJob.
_SECRETS = {
    "an AWS access key id": r"(?<![A-Za-z0-9])(AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    # 40 characters of base64; a hash in hex has no upper case, and a path has dots or dashes around such a part.
    "an AWS secret access key": r"(?<![\w/+=.-])(?=\S*[a-z])(?=\S*[A-Z])(?=\S*[0-9])[A-Za-z0-9/+]{40}(?![\w/+=.-])",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a connection string": r"(?i)\b(AccountKey|SharedAccessKey|SharedAccessSignature|InstrumentationKey)\s*=\s*\S",
    # 64 bytes: of a storage account, of Cosmos DB, of Batch.
    "an account key of Azure": r"(?<![\w/+=.-])[A-Za-z0-9/+]{86}==(?![\w/+=.-])",
    "a shared access signature": r"(^|[?&;\s])sig=[^&\s]{8,}",
    # Azure's services put four letters of their own and a checksum at the end of a key.
    "a key of a service of Azure": r"[?&]code=[\w/+%=-]{16,}|[\w/+-]{30}(AzFu|AzSe|AzCa|ACDb|AStA|\+AStb|\+ABa|APIM)[\w/+-]{4,}={0,2}",
    "a JSON Web Token": r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    "an address with a password": r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://([^/\s:@]*:[^/\s@]+|[^/\s:@]{20,})@",
    "an access token": r"\b(gh[pousr]_\w{20,}|github_pat_\w{20,}|gl[a-z]{2,6}-[\w-]{20,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|hf_\w{30,})"
    r"|\b(sk-[\w-]{20,}|[rs]k_(live|test)_\w{16,}|npm_\w{30,}|pypi-[\w-]{30,}|AIza[\w-]{35}|SG\.[\w-]{16,}\.[\w-]{16,})"
    r"|\b(dckr_pat_[\w-]{20,}|hv[sbr]\.[\w-]{20,}|\w{14}\.atlasv1\.[\w-]{20,}|dapi[0-9a-f]{32}|dop_v1_\w{20,}|glsa_\w{20,})"
    r"|\b(shp(at|ca|pa|ss)_|NRAK-|lin_api_|pul-|pscale_tkn_|dp\.[a-z]{2}\.)\w{20,}"
    r"|\b(AGE-SECRET-KEY-1\w{20,}|(IQoJb3JpZ2lu|F[wQ]oGZXIvYXdz)[\w/+=]{40,}|hooks\.slack\.com/services/\S{10,})"
    r"|(?i:\bbearer\s+[\w.~+/-]{8,}|\bauthorization[\"']?\s*[:=]\s*\S|\bbasic\s+[a-z0-9+/]{8,}={1,2}(?!\S))",
    "a client secret of Entra": r"(?<![\w~.-])[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}(?![\w~.-])",
    "a password": r"((?<![A-Za-z])(?i:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|client[_-]?secret)"
    r"|(?<=[a-z0-9])(Password|Passphrase|Pwd|Secret|Token|ApiKey|AccessKey))[\"']?\s*[=:]\s*\S"
    r"|(?i:--?(password|passwd|passphrase|secret|token|api-key)\s+\S)",
}
# A name that ends so promises a secret, whatever the value looks like: with words apart, and in camel case.
_KEYS = "api|access|account|private|secret|encryption|signing|ssh|function|subscription|storage|master|host|service"
_SECRET_NAME = re.compile(
    r"((^|[^A-Za-z])(?i:password|passwd|passphrase|passcode|pwd|secret|token|credentials?|sas|connection[_-]?string"
    rf"|(db|user|admin|root|smtp)[_-]?pass|({_KEYS})[_-]?key)"
    r"|[a-z0-9](Password|Passphrase|Passcode|Pwd|Secret|Token|Credentials?|ConnectionString"
    rf"|({'|'.join(word.title() for word in _KEYS.split('|'))})Key))[0-9]*$"
)
_PLACEHOLDER = re.compile(
    r"(?i)<[^<>]*>|(?<![a-z])((change|replace|fill)[ _-]?(me|this|in)|todo|fixme|placeholder|x{3,8})(?![a-z])"
)


class Table(BaseModel):
    """One table of a settings file: unknown keys are refused, values keep their TOML type, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def nearest(found: str, known: Collection[str]) -> str:
    """For a message: the known name that was most likely meant, and all that are allowed."""
    near = difflib.get_close_matches(found, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(sorted(known))}"


def nearest_instance_type(found: str, use: Use) -> str:
    """For a message: the sizes of the same family, or else the families."""
    family, types = found.split(".")[1], INSTANCE_TYPES[use]
    same = {each for each in types if each.split(".")[1] == family}
    return nearest(found, same) if same else f"families: {', '.join(sorted({each.split('.')[1] for each in types}))}"


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds by its looks; None for any other text."""
    return next((kind for kind, pattern in _SECRETS.items() if re.search(pattern, text)), None)


def names_a_secret(name: str) -> bool:
    """Whether a value of this name would be a secret: `db_password`, but neither `tokens` nor `monkey`."""
    return _SECRET_NAME.search(name) is not None


def is_placeholder(text: str) -> bool:
    """Whether somebody was to replace this text: `<ACCOUNT>`, `CHANGE_ME`."""
    return _PLACEHOLDER.search(text) is not None


def _known_region(region: str) -> str:
    if region not in REGIONS:
        raise ValueError(f"no AWS region with SageMaker; {nearest(region, REGIONS)}")
    return region


Region = Annotated[str, AfterValidator(_known_region), Field(json_schema_extra={"enum": sorted(REGIONS)})]
