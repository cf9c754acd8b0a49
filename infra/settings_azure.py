"""The [azure] table: where the released model runs on Azure, who may call it, and the rules between those keys.

The ranges are what azurerm 4.55.0 or Azure itself takes, whichever is narrower; most of them would otherwise show only at
`terraform plan`, `apply`, or in a host that does not start.
"""

import datetime
import ipaddress
import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from infra.settings_table import Email, Region, Table, nearest

Hosting = Literal["flex", "premium", "container"]
Door = Literal["function-key", "entra", "anonymous", "internal"]

# The regions of the public cloud, as `az account list-locations` names them; a new one is an edit of this list.
LOCATIONS = frozenset(
    """
    australiacentral australiacentral2 australiaeast australiasoutheast austriaeast belgiumcentral brazilsouth
    brazilsoutheast canadacentral canadaeast centralindia centralus chilecentral denmarkeast eastasia eastus eastus2
    francecentral francesouth germanynorth germanywestcentral indonesiacentral israelcentral italynorth japaneast japanwest
    jioindiacentral jioindiawest koreacentral koreasouth malaysiawest mexicocentral newzealandnorth northcentralus
    northeurope norwayeast norwaywest polandcentral qatarcentral southafricanorth southafricawest southcentralus
    southeastasia southindia spaincentral swedencentral swedensouth switzerlandnorth switzerlandwest uaecentral uaenorth
    uksouth ukwest westcentralus westeurope westindia westus westus2 westus3
    """.split()  # noqa: SIM905
)


def _known_location(location: str) -> str:
    if location not in LOCATIONS:
        raise ValueError(f"no region of Azure's public cloud; {nearest(location, LOCATIONS)}")
    return location


def _network(cidr: str) -> str:
    """An IPv4 network in CIDR form, host bits zero. The provider and Azure disagree about anything looser."""
    try:
        return str(ipaddress.IPv4Network(cidr))
    except ValueError as error:
        raise ValueError(f"no IPv4 network in CIDR form, for instance '203.0.113.0/24' ({error})") from error


def _outside_network(cidr: str) -> str:
    """A firewall rule of a storage account: Azure takes neither private addresses nor a network of two or one."""
    network = ipaddress.IPv4Network(_network(cidr))
    if network.prefixlen == 31 or any(network.overlaps(private) for private in _PRIVATE):
        raise ValueError("allowed: public addresses, as /0 to /30 or as /32")
    return cidr


def _two_subnets(cidr: str) -> str:
    network = ipaddress.IPv4Network(_network(cidr))
    if not 16 <= network.prefixlen <= 24 or not any(network.subnet_of(private) for private in _PRIVATE):
        raise ValueError(
            "allowed: a private network from /16 to /24; half of it is the app's subnet, half the endpoints'"
        )
    return cidr


def _first_of_month(day: datetime.date) -> datetime.date:
    if day.day != 1 or day < datetime.date(2017, 6, 1):
        raise ValueError("allowed: the first day of a month, June 2017 or later")
    return day


Location = Annotated[str, AfterValidator(_known_location)]
Suffix = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{3,6}$")]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Cidr = Annotated[str, AfterValidator(_network)]
StorageCidr = Annotated[str, AfterValidator(_outside_network)]
# Microsoft.Resources: 1 to 90 letters, digits and -_.(), no dot at the end.
ResourceGroupName = Annotated[str, StringConstraints(pattern=r"^[-A-Za-z0-9_.()]*[-A-Za-z0-9_()]$", max_length=90)]
PinnedImage = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9.-]+\.[a-z]+(/[a-z0-9]+([._-]+[a-z0-9]+)*)+@sha256:[0-9a-f]{64}$")
]
RegistryId = Annotated[
    str,
    StringConstraints(
        pattern=r"^/subscriptions/[0-9a-f-]{36}/resourceGroups/[-A-Za-z0-9_.()]+/providers/Microsoft\.ContainerRegistry"
        r"/registries/[a-zA-Z0-9]{5,50}$"
    ),
]
WorkerThreads = Annotated[int, Field(ge=1, le=32)]

_PRIVATE = [ipaddress.IPv4Network(cidr) for cidr in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_FLEX_CORES = {512: 0.25, 2048: 1.0, 4096: 2.0}
_PREMIUM_CORES = {"EP1": 1, "EP2": 2, "EP3": 4}


class FlexSettings(Table):
    """The Flex Consumption plan: nothing runs while nobody calls, and instances come by the number of requests at once."""

    instance_memory_mb: Literal[512, 2048, 4096] = Field(
        default=2048, description="Memory of one instance, MiB; 0.25, 1 or 2 cores come with it."
    )
    maximum_instance_count: Annotated[int, Field(ge=40, le=1000)] = Field(
        default=40, description="Upper limit of instances; azurerm 4.55 accepts 40 to 1000."
    )
    always_ready_instances: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="Instances that run, and cost, all the time, so that no request waits for a cold start."
    )
    http_concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8,
        description="Requests at once on one instance before Azure starts another. Inference is bound by the CPU: more "
        "requests at once only wait longer.",
    )
    worker_threads: WorkerThreads | None = Field(
        default=None,
        description="Threads that run handlers; default: one for each core, where inference holds it, and one that answers "
        "health checks. The plan runs one worker process and takes no setting for that.",
    )

    @model_validator(mode="after")
    def _ready_within_maximum(self) -> Self:
        if self.always_ready_instances > self.maximum_instance_count:
            raise ValueError(
                f"always_ready_instances is {self.always_ready_instances} and maximum_instance_count is "
                f"{self.maximum_instance_count}; the first may not be more than the second"
            )
        return self

    @property
    def threads(self) -> int:
        return self.worker_threads or math.ceil(_FLEX_CORES[self.instance_memory_mb]) + 1


class PremiumSettings(Table):
    """The Elastic Premium plan: instances that are always there, inside a virtual network."""

    sku: Literal["EP1", "EP2", "EP3"] = Field(default="EP1", description="Size of an instance: 1, 2 or 4 cores.")
    minimum_instances: Annotated[int, Field(ge=1, le=20)] = Field(
        default=1, description="Instances that always run; they cost whether or not anybody calls."
    )
    maximum_instances: Annotated[int, Field(ge=1, le=100)] = Field(
        default=10, description="Upper limit of instances; what a region has may be less."
    )
    worker_processes: Annotated[int, Field(ge=1, le=10)] | None = Field(
        default=None,
        description="Python processes on one instance; default: one for each core, because inference is bound by the CPU.",
    )
    worker_threads: WorkerThreads = Field(
        default=2,
        description="Threads of each process that run handlers: one for inference, one that answers health checks.",
    )

    @model_validator(mode="after")
    def _minimum_within_maximum(self) -> Self:
        if self.minimum_instances > self.maximum_instances:
            raise ValueError(
                f"minimum_instances is {self.minimum_instances} and maximum_instances is {self.maximum_instances}; "
                "the first may not be more than the second"
            )
        return self

    @property
    def processes(self) -> int:
        return self.worker_processes or _PREMIUM_CORES[self.sku]


class ContainerSettings(Table):
    """Azure Container Apps, running the image that SageMaker runs."""

    image: PinnedImage = Field(
        description="The serving image, pinned: <registry>/<repository>@sha256:<digest>. Copy SageMaker's image there."
    )
    registry_id: RegistryId | None = Field(
        default=None,
        description="Resource id of the Azure Container Registry that holds the image; the app gets AcrPull on it.",
    )
    cpu: Annotated[float, Field(ge=0.5, le=4, multiple_of=0.5)] = Field(
        default=1.0, description="Cores of one replica; twice as many GiB of memory come with them."
    )
    min_replicas: Annotated[int, Field(ge=0, le=300)] = Field(
        default=1, description="Replicas that always run; with 0 the first request after a pause waits for a start."
    )
    max_replicas: Annotated[int, Field(ge=1, le=300)] = Field(default=10, description="Upper limit of replicas.")
    concurrent_requests: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=16, description="Requests at once on one replica before another starts."
    )

    @model_validator(mode="after")
    def _minimum_within_maximum(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} and max_replicas is {self.max_replicas}; "
                "the first may not be more than the second"
            )
        return self


class EntraSettings(Table):
    """The app registration whose tokens open the door."""

    tenant_id: Uuid = Field(description="Directory (tenant) id; only its tokens are taken.")
    client_id: Uuid = Field(description="Application (client) id of the app registration.")
    audiences: list[Annotated[str, StringConstraints(pattern=r"^\S+$")]] = Field(
        min_length=1, description='What a token must be for, for instance ["api://<client id>"].'
    )


class NetworkSettings(Table):
    """Who can reach the app and its storage at all, before any key or token is looked at."""

    allowed_cidrs: list[Cidr] = Field(
        default_factory=list,
        max_length=100,
        description="IPv4 networks that may call the app; empty: any. Everybody else gets 403 from Azure.",
    )
    private_endpoints: bool = Field(
        default=False,
        description="App and storage answer inside a virtual network only. Whoever deploys has to be in it, or in "
        "deployer_cidrs.",
    )
    deployer_cidrs: list[StorageCidr] = Field(
        default_factory=list,
        max_length=100,
        description="With private_endpoints: public IPv4 networks that may upload the release, where whoever deploys is not "
        "inside the virtual network.",
    )
    address_space: Annotated[str, AfterValidator(_two_subnets)] = Field(
        default="10.42.0.0/24", description="Of the virtual network, where there is one; /16 to /24."
    )

    @model_validator(mode="after")
    def _private_or_restricted(self) -> Self:
        if self.private_endpoints and self.allowed_cidrs:
            raise ValueError(
                "private_endpoints is true and allowed_cidrs is given; nobody outside the virtual network arrives then: "
                "drop one of the two"
            )
        if self.deployer_cidrs and not self.private_endpoints:
            raise ValueError(
                "deployer_cidrs is given and private_endpoints is false; storage takes uploads anyway then"
            )
        return self

    @property
    def subnets(self) -> tuple[str, str]:
        """The halves of the address space: the app's and the private endpoints'."""
        app, endpoints = ipaddress.IPv4Network(self.address_space).subnets(prefixlen_diff=1)
        return str(app), str(endpoints)


class AlertSettings(Table):
    """When somebody is told. The alerts exist with or without a receiver."""

    emails: list[Email] = Field(default_factory=list, max_length=1000, description="Receivers of the action group.")
    server_errors: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=5, description="More answers of 500 and above than this within 5 minutes raise the alert."
    )
    latency_ms: Annotated[int, Field(ge=1, le=230_000)] = Field(
        default=1000, description="An average answer slower than this over 15 minutes raises the alert, milliseconds."
    )


class BudgetSettings(Table):
    """A monthly budget of the resource group; at 80 % spent and at 100 % forecast the action group is told."""

    amount: Annotated[float, Field(ge=1)] = Field(description="Per month, in the currency of the billing account.")
    start: Annotated[datetime.date, AfterValidator(_first_of_month)] = Field(
        description="First day of the month of the first deployment: Azure refuses a new budget that starts earlier."
    )


class AzureStateSettings(Table):
    """Where a team keeps the Terraform state: a container or bucket that was made beforehand."""

    backend: Literal["azurerm", "s3"] = Field(
        description="azurerm: a blob container, keyless. s3: a bucket, with its lock."
    )
    storage_account: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{3,24}$")] | None = Field(
        default=None,
        description="azurerm: storage account; whoever deploys needs Storage Blob Data Contributor on the container.",
    )
    container: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9](-?[a-z0-9])+$", min_length=3, max_length=63)] | None
    ) = Field(default=None, description="azurerm: blob container; the key is the name of the stack.")
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None = Field(
        default=None, description="s3: bucket, versioned and encrypted; the key is the name of the stack."
    )
    region: Region | None = Field(default=None, description="s3: the bucket's region.")

    @model_validator(mode="after")
    def _keys_of_the_backend(self) -> Self:
        wanted = {"azurerm": ("storage_account", "container"), "s3": ("bucket", "region")}[self.backend]
        given = tuple(
            name for name in ("storage_account", "container", "bucket", "region") if getattr(self, name) is not None
        )
        if given != wanted:
            raise ValueError(
                f"backend is {self.backend!r}, which needs {' and '.join(wanted)} and no other key; "
                f"given: {', '.join(given) or 'none of them'}"
            )
        return self


class AzureSettings(Table):
    """Where the released model runs on Azure, who may call it, and who is told when it does not answer."""

    location: Location = Field(description="Azure region, in its short form, for instance westeurope.")
    suffix: Suffix = Field(
        description="3 to 6 letters or digits that make the globally unique names (storage account, app) yours."
    )
    hosting: Hosting = Field(
        default="flex",
        description="flex: Function App, Flex Consumption. premium: Function App, Elastic Premium, in a virtual network. "
        "container: Azure Container Apps, the very image that SageMaker runs.",
    )
    authorization: Literal["function-key", "entra", "anonymous"] | None = Field(
        default=None,
        description="Who may ask for an inference. Default: function-key for a Function App; for a container nobody from "
        "outside its environment. entra needs the table [azure.entra].",
    )
    storage_auth: Literal["identity", "connection-string"] = Field(
        default="identity", description="How the Function App reaches its storage; identity needs no key anywhere."
    )
    grant_deployer: bool = Field(
        default=True,
        description="Give whoever deploys Storage Blob Data Contributor on the deployment container, and wait two minutes for "
        "it to hold; false where a role of theirs already allows the upload.",
    )
    log_retention_days: Annotated[int, Field(ge=30, le=730)] = Field(
        default=30, description="Days that Log Analytics keeps data."
    )
    subscription_id: Uuid | None = Field(
        default=None, description="The subscription; without it ARM_SUBSCRIPTION_ID says which."
    )
    resource_group: ResourceGroupName | None = Field(
        default=None, description="Name of the resource group; default: rg-<project>-<environment>."
    )
    import_resource_group: bool = Field(
        default=False,
        description="The resource group exists already: the deployment takes it over as it is and never deletes it.",
    )
    flex: FlexSettings | None = Field(default=None, description='For hosting = "flex"; without it the defaults hold.')
    premium: PremiumSettings | None = Field(
        default=None, description='For hosting = "premium"; without it the defaults hold.'
    )
    container: ContainerSettings | None = Field(default=None, description='Needed for hosting = "container".')
    entra: EntraSettings | None = Field(default=None, description='Needed for authorization = "entra".')
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    alerts: AlertSettings = Field(default_factory=AlertSettings)
    budget: BudgetSettings | None = Field(default=None, description="Without it nothing watches the cost.")
    state: AzureStateSettings | None = Field(
        default=None, description="Where a team keeps the Terraform state; without it a file in this folder does."
    )

    @model_validator(mode="after")
    def _combination(self) -> Self:
        for name in ("flex", "premium", "container"):
            if getattr(self, name) is not None and name != self.hosting:
                raise ValueError(
                    f"hosting is {self.hosting!r} and the table azure.{name} is given; it belongs to hosting = "
                    f"{name!r} and would change nothing: drop it"
                )
        if self.hosting == "container" and self.container is None:
            raise ValueError("hosting is 'container' and the table azure.container is missing; it names the image")
        if self.hosting == "container" and self.authorization == "function-key":
            raise ValueError(
                "hosting is 'container' and authorization is 'function-key'; only the Functions host knows keys. Allowed: "
                "entra, anonymous, or no authorization key, which keeps the door inside the environment"
            )
        if (self.authorization == "entra") != (self.entra is not None):
            raise ValueError(
                f"authorization is {self.authorization!r} and the table azure.entra is "
                f"{'missing' if self.entra is None else 'given'}; they belong together"
            )
        if self.storage_auth == "connection-string" and (self.hosting != "flex" or self.network.private_endpoints):
            raise ValueError(
                f"storage_auth is 'connection-string', hosting is {self.hosting!r} and network.private_endpoints is "
                f"{self.network.private_endpoints}; keys are a fallback for hosting = 'flex' without private endpoints only"
            )
        if self.import_resource_group and not (self.resource_group and self.subscription_id):
            raise ValueError(
                "import_resource_group is true; it needs resource_group and subscription_id, which say which one exists"
            )
        return self

    @property
    def door(self) -> Door:
        """Who may ask for an inference: what `authorization` says, or the strictest that the hosting has by itself."""
        return self.authorization or ("internal" if self.hosting == "container" else "function-key")

    @property
    def flex_plan(self) -> FlexSettings:
        return self.flex or FlexSettings()

    @property
    def premium_plan(self) -> PremiumSettings:
        return self.premium or PremiumSettings()

    @property
    def virtual_network(self) -> bool:
        """Whether the deployment has a virtual network at all."""
        return self.hosting == "premium" or self.network.private_endpoints
