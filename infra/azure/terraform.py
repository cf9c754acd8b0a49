"""The one module that knows the CDKTF kits and the azurerm bindings; the stack knows them by these names only.

The names are those of the default kit: cdktf 0.21 with the bindings of azurerm 4.55.0. With FERRY_CDKTF_KIT=cdktn the same
names are cdktn's, with the bindings of azurerm 5.10.0. Where the two providers name an argument differently, a function
below says which.
"""
# These imports are the list of names that the stack may import from here; as one statement a module they can be read.
# ruff: noqa: F401, I001

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.azure.kit import chosen_kit, names_from

KIT = chosen_kit()

if TYPE_CHECKING:
    from cdktf import (
        App,
        AssetType,
        AzurermBackend,
        LocalBackend,
        LocalExecProvisioner,
        S3Backend,
        TerraformAsset,
        TerraformOutput,
        TerraformResourceLifecycle,
        TerraformStack,
    )
    from cdktf_cdktf_provider_azurerm.application_insights import ApplicationInsights
    from cdktf_cdktf_provider_azurerm.application_insights_standard_web_test import (
        ApplicationInsightsStandardWebTest as StandardWebTest,
        ApplicationInsightsStandardWebTestRequest as WebTestRequest,
        ApplicationInsightsStandardWebTestValidationRules as WebTestValidation,
    )
    from cdktf_cdktf_provider_azurerm.consumption_budget_resource_group import (
        ConsumptionBudgetResourceGroup as Budget,
        ConsumptionBudgetResourceGroupNotification as BudgetNotification,
        ConsumptionBudgetResourceGroupTimePeriod as BudgetPeriod,
    )
    from cdktf_cdktf_provider_azurerm.container_app import (
        ContainerApp,
        ContainerAppIdentity,
        ContainerAppIngress as Ingress,
        ContainerAppIngressIpSecurityRestriction as IngressIpRestriction,
        ContainerAppIngressTrafficWeight as IngressTraffic,
        ContainerAppRegistry,
        ContainerAppTemplate,
        ContainerAppTemplateContainer as Container,
        ContainerAppTemplateContainerEnv as ContainerEnv,
        ContainerAppTemplateContainerLivenessProbe as LivenessProbe,
        ContainerAppTemplateContainerReadinessProbe as ReadinessProbe,
        ContainerAppTemplateContainerStartupProbe as StartupProbe,
        ContainerAppTemplateHttpScaleRule as HttpScaleRule,
    )
    from cdktf_cdktf_provider_azurerm.container_app_environment import (
        ContainerAppEnvironment,
        ContainerAppEnvironmentWorkloadProfile as WorkloadProfile,
    )
    from cdktf_cdktf_provider_azurerm.data_azurerm_client_config import DataAzurermClientConfig as ClientConfig
    from cdktf_cdktf_provider_azurerm.function_app_flex_consumption import (
        FunctionAppFlexConsumption,
        FunctionAppFlexConsumptionAlwaysReady as FlexAlwaysReady,
        FunctionAppFlexConsumptionAuthSettingsV2 as FlexAuthSettings,
        FunctionAppFlexConsumptionIdentity as FlexIdentity,
        FunctionAppFlexConsumptionSiteConfig as FlexSiteConfig,
        FunctionAppFlexConsumptionSiteConfigIpRestriction as FlexIpRestriction,
    )
    from cdktf_cdktf_provider_azurerm.linux_function_app import (
        LinuxFunctionApp,
        LinuxFunctionAppAuthSettingsV2 as LinuxAuthSettings,
        LinuxFunctionAppIdentity as LinuxIdentity,
        LinuxFunctionAppSiteConfig as LinuxSiteConfig,
        LinuxFunctionAppSiteConfigApplicationStack as LinuxApplicationStack,
        LinuxFunctionAppSiteConfigIpRestriction as LinuxIpRestriction,
    )
    from cdktf_cdktf_provider_azurerm.log_analytics_workspace import LogAnalyticsWorkspace
    from cdktf_cdktf_provider_azurerm.monitor_action_group import (
        MonitorActionGroup as ActionGroup,
        MonitorActionGroupEmailReceiver as EmailReceiver,
    )
    from cdktf_cdktf_provider_azurerm.monitor_diagnostic_setting import (
        MonitorDiagnosticSetting as DiagnosticSetting,
        MonitorDiagnosticSettingEnabledLog as EnabledLog,
        MonitorDiagnosticSettingEnabledMetric as EnabledMetric,
    )
    from cdktf_cdktf_provider_azurerm.monitor_metric_alert import (
        MonitorMetricAlert as MetricAlert,
        MonitorMetricAlertAction as AlertAction,
        MonitorMetricAlertCriteria as AlertCriteria,
        MonitorMetricAlertCriteriaDimension as AlertDimension,
    )
    from cdktf_cdktf_provider_azurerm.monitor_scheduled_query_rules_alert_v2 import (
        MonitorScheduledQueryRulesAlertV2 as QueryAlert,
        MonitorScheduledQueryRulesAlertV2Action as QueryAlertAction,
        MonitorScheduledQueryRulesAlertV2Criteria as QueryAlertCriteria,
        MonitorScheduledQueryRulesAlertV2CriteriaFailingPeriods as QueryAlertPeriods,
    )
    from cdktf_cdktf_provider_azurerm.network_security_group import NetworkSecurityGroup
    from cdktf_cdktf_provider_azurerm.network_security_rule import NetworkSecurityRule
    from cdktf_cdktf_provider_azurerm.private_dns_a_record import PrivateDnsARecord as PrivateDnsRecord
    from cdktf_cdktf_provider_azurerm.private_dns_zone import PrivateDnsZone
    from cdktf_cdktf_provider_azurerm.private_dns_zone_virtual_network_link import (
        PrivateDnsZoneVirtualNetworkLink as PrivateDnsZoneLink,
    )
    from cdktf_cdktf_provider_azurerm.private_endpoint import (
        PrivateEndpoint,
        PrivateEndpointPrivateDnsZoneGroup as PrivateDnsZoneGroup,
        PrivateEndpointPrivateServiceConnection as PrivateServiceConnection,
    )
    from cdktf_cdktf_provider_azurerm.provider import (
        AzurermProvider,
        AzurermProviderFeatures as ProviderFeatures,
        AzurermProviderFeaturesResourceGroup as ResourceGroupFeatures,
        AzurermProviderFeaturesStorage as StorageFeatures,
        AzurermProviderFeaturesTemplateDeployment as TemplateDeploymentFeatures,
    )
    from cdktf_cdktf_provider_azurerm.resource_group import ResourceGroup
    from cdktf_cdktf_provider_azurerm.resource_group_template_deployment import (
        ResourceGroupTemplateDeployment as TemplateDeployment,
    )
    from cdktf_cdktf_provider_azurerm.role_assignment import RoleAssignment
    from cdktf_cdktf_provider_azurerm.service_plan import ServicePlan
    from cdktf_cdktf_provider_azurerm.storage_account import (
        StorageAccount,
        StorageAccountBlobProperties as BlobProperties,
        StorageAccountBlobPropertiesContainerDeleteRetentionPolicy as ContainerRetention,
        StorageAccountBlobPropertiesDeleteRetentionPolicy as BlobRetention,
        StorageAccountNetworkRules as StorageNetworkRules,
        StorageAccountSasPolicy as SasPolicy,
    )
    from cdktf_cdktf_provider_azurerm.storage_blob import StorageBlob
    from cdktf_cdktf_provider_azurerm.storage_container import StorageContainer
    from cdktf_cdktf_provider_azurerm.subnet import (
        Subnet,
        SubnetDelegation,
        SubnetDelegationServiceDelegation as ServiceDelegation,
    )
    from cdktf_cdktf_provider_azurerm.subnet_network_security_group_association import (
        SubnetNetworkSecurityGroupAssociation as SubnetSecurity,
    )
    from cdktf_cdktf_provider_azurerm.user_assigned_identity import UserAssignedIdentity
    from cdktf_cdktf_provider_azurerm.virtual_network import VirtualNetwork
else:
    __getattr__ = names_from(KIT, Path(__file__))


def blob_location(account: "StorageAccount", container: "StorageContainer") -> dict[str, Any]:
    """The arguments of a StorageBlob that say where it lies: azurerm 4 takes two names, azurerm 5 an id."""
    if KIT.azurerm == 4:
        return {"storage_account_name": account.name, "storage_container_name": container.name}
    return {"storage_container_id": container.id}


def telemetry_without_keys() -> dict[str, Any]:
    """The argument of ApplicationInsights that refuses whoever has no identity: azurerm 5 turned it round."""
    if KIT.azurerm == 4:
        return {"local_authentication_disabled": True}
    return {"local_authentication_enabled": False}


def linked_zone(zone: "PrivateDnsZone") -> dict[str, Any]:
    """The arguments of a PrivateDnsZoneLink that name its zone: azurerm 4 takes two names, azurerm 5 an id."""
    if KIT.azurerm == 4:
        return {"private_dns_zone_name": zone.name, "resource_group_name": zone.resource_group_name}
    return {"private_dns_zone_id": zone.id}


def recorded_zone(zone: "PrivateDnsZone") -> dict[str, Any]:
    """The arguments of a PrivateDnsRecord that name its zone: azurerm 4 takes two names, azurerm 5 an id."""
    if KIT.azurerm == 4:
        return {"zone_name": zone.name, "resource_group_name": zone.resource_group_name}
    return {"private_dns_zone_id": zone.id}
