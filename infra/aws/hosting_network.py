"""A network of its own for the containers: two private subnets, a way to S3, and nothing to the internet.

SageMaker Developer Guide, "Give SageMaker AI hosted endpoints access to resources in your Amazon VPC": at least two subnets in
different zones, and an S3 endpoint, because model data come through the VPC. Images and logs do not (CreateModel, ImageConfig:
RepositoryAccessMode "Platform").
"""

import ipaddress
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.aws.stack import EnvironmentStack
from infra.settings import Settings
from infra.settings_hosting import VpcSettings

# What containers that are not isolated may call, as AWS's own images do; each costs money by the hour and zone.
INTERFACE_SERVICES = ("ecr.api", "ecr.dkr", "logs", "sts")
_HTTPS = 443


class HostingNetwork(Construct):
    """Made of CloudFormation's own resources: CDK's Vpc wants to look the account's zones up.

    The zones are the first two of the region, by index. CloudFormation cannot take the rules out of a VPC's default security
    group; nothing is in that group, and without a gateway there is nowhere to go.
    """

    def __init__(
        self, scope: EnvironmentStack, construct_id: str, *, settings: Settings, table: VpcSettings, key: kms.IKey
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._stack = scope
        self._vpc = self._network(table)
        self._table = ec2.CfnRouteTable(self, "Routes", vpc_id=self._vpc.ref, tags=self._name("private"))
        self._subnets = [self._subnet(index, cidr) for index, cidr in enumerate(_halves(table))]
        self._containers = self._security_group("Containers", "Containers of the endpoint: out to AWS services only.")
        self._reach_services()
        self._s3()
        if not settings.hosting.network.isolation:
            self._services()
        self._flow_logs(key)

    @property
    def vpc_config(self) -> sagemaker.CfnModel.VpcConfigProperty:
        return sagemaker.CfnModel.VpcConfigProperty(
            subnets=[subnet.ref for subnet in self._subnets], security_group_ids=[self._containers.attr_group_id]
        )

    def _network(self, table: VpcSettings) -> ec2.CfnVPC:
        return ec2.CfnVPC(
            self,
            "Vpc",
            cidr_block=table.cidr,
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags=self._name("hosting"),
        )

    def _subnet(self, index: int, cidr: str) -> ec2.CfnSubnet:
        subnet = ec2.CfnSubnet(
            self,
            f"Subnet{index + 1}",
            vpc_id=self._vpc.ref,
            cidr_block=cidr,
            availability_zone=cdk.Fn.select(index, cdk.Fn.get_azs()),
            map_public_ip_on_launch=False,
            tags=self._name(f"private-{index + 1}"),
        )
        ec2.CfnSubnetRouteTableAssociation(
            self, f"Routes{index + 1}", route_table_id=self._table.ref, subnet_id=subnet.ref
        )
        return subnet

    def _security_group(self, construct_id: str, description: str) -> ec2.CfnSecurityGroup:
        return ec2.CfnSecurityGroup(
            self,
            construct_id,
            vpc_id=self._vpc.ref,
            group_description=description,
            # EC2 adds a rule for all traffic to a group that is made without one; a rule to nowhere keeps it from that.
            security_group_egress=[
                ec2.CfnSecurityGroup.EgressProperty(
                    ip_protocol="icmp",
                    from_port=252,
                    to_port=86,
                    cidr_ip="255.255.255.255/32",
                    description="Nothing; without a rule EC2 would allow everything.",
                )
            ],
            tags=self._name(construct_id.lower()),
        )

    def _reach_services(self) -> None:
        """S3's addresses are public ones, whose list has an id of its own in each region; the routes lead nowhere else."""
        ec2.CfnSecurityGroupEgress(
            self,
            "ToServices",
            group_id=self._containers.attr_group_id,
            ip_protocol="tcp",
            from_port=_HTTPS,
            to_port=_HTTPS,
            cidr_ip="0.0.0.0/0",
            description="S3 through its gateway, and the interface endpoints where there are any.",
        )

    def _s3(self) -> None:
        ec2.CfnVPCEndpoint(
            self,
            "S3",
            vpc_id=self._vpc.ref,
            vpc_endpoint_type="Gateway",
            service_name=f"com.amazonaws.{self._settings.aws.region}.s3",
            route_table_ids=[self._table.ref],
            policy_document=self._s3_policy(),
        )

    def _s3_policy(self) -> dict[str, Any]:
        """Our artifacts for this account's principals, and the bucket that ECR keeps image layers in (Amazon ECR User Guide)."""
        settings, partition = self._settings, self._stack.partition
        artifacts = f"arn:{partition}:s3:::{settings.artifact_bucket}"
        layers = f"arn:{partition}:s3:::prod-{settings.aws.region}-starport-layer-bucket/*"
        statements = [
            iam.PolicyStatement(
                sid="Artifacts",
                principals=[iam.AnyPrincipal()],
                actions=["s3:AbortMultipartUpload", "s3:GetObject", "s3:ListBucket", "s3:PutObject"],
                resources=[artifacts, f"{artifacts}/*"],
                conditions={"StringEquals": {"aws:PrincipalAccount": settings.aws.account}},
            ),
            iam.PolicyStatement(
                sid="ImageLayers", principals=[iam.AnyPrincipal()], actions=["s3:GetObject"], resources=[layers]
            ),
        ]
        document: dict[str, Any] = iam.PolicyDocument(statements=statements).to_json()
        return document

    def _services(self) -> None:
        """Only where the containers are not isolated: an isolated one calls nobody."""
        group = self._security_group("Services", "Interface endpoints: HTTPS from the containers only.")
        ec2.CfnSecurityGroupIngress(
            self,
            "FromContainers",
            group_id=group.attr_group_id,
            ip_protocol="tcp",
            from_port=_HTTPS,
            to_port=_HTTPS,
            source_security_group_id=self._containers.attr_group_id,
            description="HTTPS from the containers.",
        )
        for service in INTERFACE_SERVICES:
            ec2.CfnVPCEndpoint(
                self,
                "".join(part.capitalize() for part in service.split(".")),
                vpc_id=self._vpc.ref,
                vpc_endpoint_type="Interface",
                service_name=f"com.amazonaws.{self._settings.aws.region}.{service}",
                subnet_ids=[subnet.ref for subnet in self._subnets],
                security_group_ids=[group.attr_group_id],
                private_dns_enabled=True,
            )

    def _flow_logs(self, key: kms.IKey) -> None:
        group = self._stack.log_group("FlowLogs", key=key)
        role = iam.Role(
            self,
            "FlowLogRole",
            assumed_by=iam.ServicePrincipal(
                "vpc-flow-logs.amazonaws.com",
                conditions={"StringEquals": {"aws:SourceAccount": self._settings.aws.account}},
            ),
            inline_policies={
                "flow-logs": iam.PolicyDocument(
                    statements=[
                        iam.PolicyStatement(
                            sid="WriteFlowLogs",
                            actions=["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                            resources=[group.attr_arn],
                        )
                    ]
                )
            },
        )
        ec2.CfnFlowLog(
            self,
            "FlowLog",
            resource_id=self._vpc.ref,
            resource_type="VPC",
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_destination=group.attr_arn,
            deliver_logs_permission_arn=role.role_arn,
        )

    def _name(self, part: str) -> list[cdk.CfnTag]:
        return [cdk.CfnTag(key="Name", value=f"{self._settings.endpoint}-{part}")]


def _halves(table: VpcSettings) -> list[str]:
    """The two halves of the address range, one for each zone."""
    return [str(half) for half in ipaddress.ip_network(table.cidr or "").subnets(prefixlen_diff=1)]
