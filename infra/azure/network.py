"""Who reaches what over which network: the virtual network with its private endpoints, and the list of allowed addresses."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from infra.azure.deployment import Deployment
from infra.azure.terraform import (
    NetworkSecurityGroup,
    NetworkSecurityRule,
    PrivateDnsRecord,
    PrivateDnsZone,
    PrivateDnsZoneGroup,
    PrivateDnsZoneLink,
    PrivateEndpoint,
    PrivateServiceConnection,
    ServiceDelegation,
    Subnet,
    SubnetDelegation,
    SubnetSecurity,
    VirtualNetwork,
    linked_zone,
    recorded_zone,
)

# Who the app's subnet belongs to, and the action that Azure gives it there: left out, every plan would show it.
_DELEGATIONS = {
    "flex": ("Microsoft.App/environments", "Microsoft.Network/virtualNetworks/subnets/join/action"),
    "premium": ("Microsoft.Web/serverFarms", "Microsoft.Network/virtualNetworks/subnets/action"),
    "container": ("Microsoft.App/environments", "Microsoft.Network/virtualNetworks/subnets/join/action"),
}
# Subresource of a private endpoint -> zone that its name has to lie in (Azure, "Private endpoint DNS zone values").
_ZONES = {
    "blob": "privatelink.blob.core.windows.net",
    "queue": "privatelink.queue.core.windows.net",
    "table": "privatelink.table.core.windows.net",
    "sites": "privatelink.azurewebsites.net",
}
_LOWEST_PRIORITY = 4096
_FIRST_PRIORITY = 100


class Network:
    """A virtual network with a subnet for the app, and one for private endpoints as soon as there is one."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._settings = deployment.settings
        self._app_addresses, self._endpoint_addresses = self._settings.azure.network.subnets
        self._network = VirtualNetwork(
            deployment.stack,
            "virtual_network",
            **deployment.place,
            name=self._settings.virtual_network,
            address_space=[self._settings.azure.network.address_space],
        )
        self.app_subnet_id: str = self._app_subnet().id
        self.endpoints: list[PrivateEndpoint] = []

    def private_endpoint(self, name: str, resource_id: str, subresource: str) -> None:
        """Give a resource an address in the network, under its usual name."""
        zone = PrivateDnsZone(
            self._deployment.stack,
            f"{subresource}_zone",
            name=_ZONES[subresource],
            resource_group_name=self._deployment.group.name,
            tags=self._deployment.own_tags,
        )
        link = self._link(subresource, zone)
        endpoint = PrivateEndpoint(
            self._deployment.stack,
            f"{name}_endpoint",
            **self._deployment.place,
            name=f"pe-{name}-{self._settings.prefix}",
            subnet_id=self._endpoint_subnet.id,
            private_service_connection=PrivateServiceConnection(
                name=name,
                private_connection_resource_id=resource_id,
                subresource_names=[subresource],
                is_manual_connection=False,
            ),
            private_dns_zone_group=PrivateDnsZoneGroup(name="default", private_dns_zone_ids=[zone.id]),
            depends_on=[link],
        )
        self.endpoints.append(endpoint)

    def private_domain(self, name: str, domain: str, address: str) -> None:
        """Let every name below `domain` mean `address` inside the network."""
        zone = PrivateDnsZone(
            self._deployment.stack,
            f"{name}_zone",
            name=domain,
            resource_group_name=self._deployment.group.name,
            tags=self._deployment.own_tags,
        )
        self._link(name, zone)
        PrivateDnsRecord(
            self._deployment.stack,
            f"{name}_record",
            name="*",
            **recorded_zone(zone),
            ttl=300,
            records=[address],
            tags=self._deployment.own_tags,
        )

    def _app_subnet(self) -> Subnet:
        """Its security group has no rule of its own: Azure's let nobody in from the Internet."""
        service, action = _DELEGATIONS[self._settings.azure.hosting]
        subnet = Subnet(
            self._deployment.stack,
            "app_subnet",
            name="app",
            resource_group_name=self._deployment.group.name,
            virtual_network_name=self._network.name,
            address_prefixes=[self._app_addresses],
            delegation=[
                SubnetDelegation(name="app", service_delegation=ServiceDelegation(name=service, actions=[action]))
            ],
        )
        self._security_group("app", subnet)
        return subnet

    @cached_property
    def _endpoint_subnet(self) -> Subnet:
        """HTTPS from inside the network, and nothing else; nothing in it ever calls out."""
        subnet = Subnet(
            self._deployment.stack,
            "endpoint_subnet",
            name="endpoints",
            resource_group_name=self._deployment.group.name,
            virtual_network_name=self._network.name,
            address_prefixes=[self._endpoint_addresses],
            default_outbound_access_enabled=False,
            # By default a security group does not concern private endpoints.
            private_endpoint_network_policies="NetworkSecurityGroupEnabled",
        )
        group = self._security_group("endpoint", subnet)
        self._inbound_rule(group, "https", _FIRST_PRIORITY, "Allow", "VirtualNetwork", "443")
        self._inbound_rule(group, "nothing_else", _LOWEST_PRIORITY, "Deny", "*", "*")
        return subnet

    def _security_group(self, name: str, subnet: Subnet) -> NetworkSecurityGroup:
        group = NetworkSecurityGroup(
            self._deployment.stack,
            f"{name}_security_group",
            **self._deployment.place,
            name=f"nsg-{name}-{self._settings.prefix}",
        )
        SubnetSecurity(
            self._deployment.stack, f"{name}_security", subnet_id=subnet.id, network_security_group_id=group.id
        )
        return group

    def _inbound_rule(
        self, group: NetworkSecurityGroup, name: str, priority: int, access: str, source: str, port: str
    ) -> None:
        """A resource of its own: as an argument of the group, Terraform JSON would have to spell out every unused key."""
        NetworkSecurityRule(
            self._deployment.stack,
            f"endpoint_{name}",
            name=name.replace("_", "-"),
            resource_group_name=self._deployment.group.name,
            network_security_group_name=group.name,
            priority=priority,
            direction="Inbound",
            access=access,
            protocol="Tcp" if access == "Allow" else "*",
            source_address_prefix=source,
            source_port_range="*",
            destination_address_prefix="*",
            destination_port_range=port,
        )

    def _link(self, name: str, zone: PrivateDnsZone) -> PrivateDnsZoneLink:
        return PrivateDnsZoneLink(
            self._deployment.stack,
            f"{name}_zone_link",
            name="to-network",
            **linked_zone(zone),
            virtual_network_id=self._network.id,
            tags=self._deployment.own_tags,
        )


def ip_restrictions(deployment: Deployment, rule: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a Function App's site_config; none where anybody may call.

    They hold for the publishing site, too. The availability test comes from Azure's own addresses. `rule` is what the app's
    kind calls one: of a plain dictionary the bindings would drop every key with an underscore, without a word.
    """
    allowed = deployment.settings.azure.network.allowed_cidrs
    if not allowed:
        return {}
    sources = [(f"allowed-{index}", "ip_address", cidr) for index, cidr in enumerate(allowed)]
    sources.append(("availability-test", "service_tag", "ApplicationInsightsAvailability"))
    return {
        "ip_restriction": [
            rule(name=name, priority=priority, action="Allow", **{kind: source})
            for priority, (name, kind, source) in enumerate(sources, start=_FIRST_PRIORITY)
        ],
        "ip_restriction_default_action": "Deny",
        "scm_use_main_ip_restriction": True,
    }
