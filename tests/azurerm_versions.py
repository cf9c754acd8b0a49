"""What differs between the Terraform JSON for azurerm 5 and the reviewed one for azurerm 4: this file, and nothing else."""

import copy
from typing import Any

Template = dict[str, Any]


def as_azurerm_4(template: Template) -> Template:
    """A copy of a template by cdktn (azurerm 5) as cdktf (azurerm 4) writes it; one by cdktf comes back as it is."""
    template = copy.deepcopy(template)
    provider = template["terraform"]["required_providers"]["azurerm"]
    if provider["version"] == "4.55.0":
        return template
    assert provider["version"] == "5.10.0"
    provider["version"] = "4.55.0"
    template["//"]["metadata"]["version"] = "0.21.0"
    resources = template["resource"]
    for blob in resources.get("azurerm_storage_blob", {}).values():
        container = blob.pop("storage_container_id")
        account = resources["azurerm_storage_container"][container.split(".")[1]]["storage_account_id"]
        blob["storage_container_name"] = container.replace(".id}", ".name}")
        blob["storage_account_name"] = account.replace(".id}", ".name}")
    for insights in resources.get("azurerm_application_insights", {}).values():
        insights["local_authentication_disabled"] = not insights.pop("local_authentication_enabled")
    for link in resources.get("azurerm_private_dns_zone_virtual_network_link", {}).values():
        zone = link.pop("private_dns_zone_id")
        link["private_dns_zone_name"] = zone.replace(".id}", ".name}")
        link["resource_group_name"] = zone.replace(".id}", ".resource_group_name}")
    for record in resources.get("azurerm_private_dns_a_record", {}).values():
        zone = record.pop("private_dns_zone_id")
        record["zone_name"] = zone.replace(".id}", ".name}")
        record["resource_group_name"] = zone.replace(".id}", ".resource_group_name}")
    return template
