"""A web ACL in front of the stage: a limit for each address, and AWS's managed rules for what is not the body."""

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_logs as logs
from aws_cdk import aws_wafv2 as wafv2
from constructs import Construct

from infra.settings import Settings
from infra.settings_hosting import WafSettings

# The rules of the common rule set that look into bodies. Ours are arrays of numbers and images: the size rule refuses what is
# over 8 KB, which one digit in JSON is, and what the others look for can stand in the bytes of any image. Nothing behind this
# door renders or evaluates a body, so these rules count, and the serving core's decoders are what judges it.
COUNTED_RULES = (
    "SizeRestrictions_BODY",
    "CrossSiteScripting_BODY",
    "EC2MetaDataSSRF_BODY",
    "GenericLFI_BODY",
    "GenericRFI_BODY",
)


class Firewall(Construct):
    """The web ACL, its association with a stage, and its log."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        waf: WafSettings,
        stage: apigateway.Stage,
        log_group: logs.CfnLogGroup,
    ) -> None:
        super().__init__(scope, construct_id)
        acl = self._acl(settings, waf)
        wafv2.CfnWebACLAssociation(self, "Association", resource_arn=stage.stage_arn, web_acl_arn=acl.attr_arn)
        self._log(acl, log_group)

    def _acl(self, settings: Settings, waf: WafSettings) -> wafv2.CfnWebACL:
        return wafv2.CfnWebACL(
            self,
            "Acl",
            name=settings.endpoint,
            description=f"In front of {settings.endpoint}",
            scope="REGIONAL",
            default_action=wafv2.CfnWebACL.DefaultActionProperty(allow={}),
            visibility_config=self._metric(settings.endpoint),
            rules=[
                self._rate_rule(waf),
                self._managed_rule("AWSManagedRulesCommonRuleSet", priority=1, counted=COUNTED_RULES),
                self._managed_rule("AWSManagedRulesKnownBadInputsRuleSet", priority=2),
            ],
        )

    def _rate_rule(self, waf: WafSettings) -> wafv2.CfnWebACL.RuleProperty:
        return wafv2.CfnWebACL.RuleProperty(
            name="RateLimit",
            priority=0,
            action=wafv2.CfnWebACL.RuleActionProperty(block={}),
            statement=wafv2.CfnWebACL.StatementProperty(
                rate_based_statement=wafv2.CfnWebACL.RateBasedStatementProperty(
                    aggregate_key_type="IP", evaluation_window_sec=300, limit=waf.requests_per_five_minutes
                )
            ),
            visibility_config=self._metric("RateLimit"),
        )

    def _managed_rule(self, name: str, *, priority: int, counted: tuple[str, ...] = ()) -> wafv2.CfnWebACL.RuleProperty:
        overrides = [
            wafv2.CfnWebACL.RuleActionOverrideProperty(
                name=rule, action_to_use=wafv2.CfnWebACL.RuleActionProperty(count={})
            )
            for rule in counted
        ]
        return wafv2.CfnWebACL.RuleProperty(
            name=name,
            priority=priority,
            override_action=wafv2.CfnWebACL.OverrideActionProperty(none={}),
            statement=wafv2.CfnWebACL.StatementProperty(
                managed_rule_group_statement=wafv2.CfnWebACL.ManagedRuleGroupStatementProperty(
                    vendor_name="AWS", name=name, rule_action_overrides=overrides or None
                )
            ),
            visibility_config=self._metric(name),
        )

    @staticmethod
    def _metric(name: str) -> wafv2.CfnWebACL.VisibilityConfigProperty:
        return wafv2.CfnWebACL.VisibilityConfigProperty(
            cloud_watch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=False
        )

    def _log(self, acl: wafv2.CfnWebACL, log_group: logs.CfnLogGroup) -> None:
        """Keys and signatures stay out of the log. WAF wants the group's ARN without the ":*" that CloudFormation puts behind."""
        arn = cdk.Stack.of(self).format_arn(
            service="logs",
            resource="log-group",
            resource_name=log_group.log_group_name,
            arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME,
        )
        logging = wafv2.CfnLoggingConfiguration(
            self,
            "Log",
            resource_arn=acl.attr_arn,
            log_destination_configs=[arn],
            redacted_fields=[
                wafv2.CfnLoggingConfiguration.FieldToMatchProperty(single_header={"Name": name})
                for name in ("authorization", "x-amz-security-token", "x-api-key")
            ],
        )
        logging.node.add_dependency(log_group)
