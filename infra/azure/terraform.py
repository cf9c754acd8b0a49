"""The one module that imports the CDKTF kit and the azurerm bindings; the stack knows them by these names only.

CDKTF 0.21 is its last release; its living successor, cdktn, has the same classes in modules of another name, so that a move
is an edit of this file. The bindings belong to azurerm 4.55.0 exactly.
"""
# ruff: noqa: E402

import importlib.util
import sys

# A side effect on import, and a large gain: the package of the bindings imports all of its 1,500 modules (343 MB, 8 seconds;
# 30 without bytecode) as soon as one of them is imported. An entry for the package that was never executed finds the few
# modules below just as well.
_BINDINGS = "cdktf_cdktf_provider_azurerm"
_spec = importlib.util.find_spec(_BINDINGS)
if _spec is not None and _BINDINGS not in sys.modules:
    sys.modules[_BINDINGS] = importlib.util.module_from_spec(_spec)

from cdktf import (
    App,
    AssetType,
    AzurermBackend,
    LocalBackend,
    LocalExecProvisioner,
    TerraformAsset,
    TerraformOutput,
    TerraformStack,
)
from cdktf_cdktf_provider_azurerm.application_insights import ApplicationInsights
from cdktf_cdktf_provider_azurerm.data_azurerm_client_config import DataAzurermClientConfig as ClientConfig
from cdktf_cdktf_provider_azurerm.function_app_flex_consumption import FunctionAppFlexConsumption
from cdktf_cdktf_provider_azurerm.function_app_flex_consumption import (
    FunctionAppFlexConsumptionIdentity as FunctionAppIdentity,
)
from cdktf_cdktf_provider_azurerm.function_app_flex_consumption import (
    FunctionAppFlexConsumptionSiteConfig as SiteConfig,
)
from cdktf_cdktf_provider_azurerm.log_analytics_workspace import LogAnalyticsWorkspace
from cdktf_cdktf_provider_azurerm.provider import AzurermProvider
from cdktf_cdktf_provider_azurerm.provider import AzurermProviderFeatures as ProviderFeatures
from cdktf_cdktf_provider_azurerm.provider import AzurermProviderFeaturesStorage as StorageFeatures
from cdktf_cdktf_provider_azurerm.resource_group import ResourceGroup
from cdktf_cdktf_provider_azurerm.role_assignment import RoleAssignment
from cdktf_cdktf_provider_azurerm.service_plan import ServicePlan
from cdktf_cdktf_provider_azurerm.storage_account import StorageAccount
from cdktf_cdktf_provider_azurerm.storage_account import StorageAccountBlobProperties as BlobProperties
from cdktf_cdktf_provider_azurerm.storage_account import (
    StorageAccountBlobPropertiesContainerDeleteRetentionPolicy as ContainerRetention,
)
from cdktf_cdktf_provider_azurerm.storage_account import (
    StorageAccountBlobPropertiesDeleteRetentionPolicy as BlobRetention,
)
from cdktf_cdktf_provider_azurerm.storage_account import StorageAccountSasPolicy as SasPolicy
from cdktf_cdktf_provider_azurerm.storage_blob import StorageBlob
from cdktf_cdktf_provider_azurerm.storage_container import StorageContainer
from cdktf_cdktf_provider_azurerm.user_assigned_identity import UserAssignedIdentity

__all__ = [
    "App",
    "ApplicationInsights",
    "AssetType",
    "AzurermBackend",
    "AzurermProvider",
    "BlobProperties",
    "BlobRetention",
    "ClientConfig",
    "ContainerRetention",
    "FunctionAppFlexConsumption",
    "FunctionAppIdentity",
    "LocalBackend",
    "LocalExecProvisioner",
    "LogAnalyticsWorkspace",
    "ProviderFeatures",
    "ResourceGroup",
    "RoleAssignment",
    "SasPolicy",
    "ServicePlan",
    "SiteConfig",
    "StorageAccount",
    "StorageBlob",
    "StorageContainer",
    "StorageFeatures",
    "TerraformAsset",
    "TerraformOutput",
    "TerraformStack",
    "UserAssignedIdentity",
]
