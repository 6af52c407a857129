"""Provider-specific checks of a cluster launcher's file: AWS, Google Cloud, your own hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from search.cluster_files.rules import count, items, section, unknown_key
from search.experiment.yaml12 import describe_value

Config = dict[str, Any]

# Parameters of EC2's RunInstances (botocore 1.44.5), and SubnetIds, which Ray itself resolves.
_EC2 = """
AdditionalInfo BlockDeviceMappings CapacityReservationSpecification ClientToken CpuOptions
CreditSpecification DisableApiStop DisableApiTermination DryRun EbsOptimized ElasticGpuSpecification
ElasticInferenceAccelerators EnablePrimaryIpv6 EnclaveOptions HibernationOptions IamInstanceProfile ImageId
InstanceInitiatedShutdownBehavior InstanceMarketOptions InstanceType Ipv6AddressCount Ipv6Addresses KernelId
KeyName LaunchTemplate LicenseSpecifications MaintenanceOptions MaxCount MetadataOptions MinCount Monitoring
NetworkInterfaces NetworkPerformanceOptions Operator Placement PrivateDnsNameOptions PrivateIpAddress
RamdiskId SecondaryInterfaces SecurityGroupIds SecurityGroups SubnetId SubnetIds TagSpecifications UserData
"""
# Writable fields of a Compute Engine v1 instance (revision 20261106).
_GCE = """
advancedMachineFeatures canIpForward confidentialInstanceConfig deletionProtection description disks
displayDevice guestAccelerators hostname instanceEncryptionKey keyRevocationActionType labelFingerprint labels
localSsdEncryptionMode machineType metadata minCpuPlatform name networkInterfaces networkPerformanceConfig
params privateIpv6GoogleAccess reservationAffinity resourcePolicies scheduling serviceAccounts
shieldedInstanceConfig shieldedInstanceIntegrityPolicy sourceMachineImage sourceMachineImageEncryptionKey tags
workloadIdentityConfig
"""
_WORLD = ("0.0.0.0/0", "::/0")


def _place(config: Config, *keys: str) -> Iterator[str]:
    """Check that the region and similar keys are set; Ray would silently use a default region."""
    provider = section(config, "provider")
    for key in keys:
        if not isinstance(provider.get(key), str) or not provider[key]:
            yield f"provider.{key}: expected a value, got {describe_value(provider.get(key))}"
    region, zones = provider.get("region"), provider.get("availability_zone")
    if isinstance(region, str) and isinstance(zones, str):
        for zone in (zone.strip() for zone in zones.split(",")):
            if not zone.startswith(region):
                yield f"provider.availability_zone: expected zones of {region}, got {zone!r}"


def _node_configs(config: Config) -> Iterator[tuple[str, Config]]:
    types = section(config, "available_node_types")
    for name in types:
        yield f"available_node_types.{name}.node_config", section(types, name, "node_config")


def _ec2_parameters() -> set[str]:
    """Return the parameter names that EC2 knows, including those of botocore if it is installed."""
    known = set(_EC2.split())
    if find_spec("botocore"):
        import botocore.session  # type: ignore[import-not-found,import-untyped]

        model = botocore.session.Session().get_service_model("ec2")
        known |= set(model.operation_model("RunInstances").input_shape.members)
    return known


def aws(config: Config) -> Iterator[str]:
    """Check region, EC2 parameters, and security groups open to the world."""
    yield from _place(config, "region")
    known = _ec2_parameters()
    for path, node in _node_configs(config):
        yield from (
            unknown_key(path, str(key), known, "EC2's RunInstances") for key in node if key not in known
        )
        if not (node.keys() & {"SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate"}):
            yield (
                f"{path}.SecurityGroupIds: expected a security group of your own, got none: Ray would make "
                "one with port 22 open to the world"
            )
    for index, rule in enumerate(items(section(config, "provider", "security_group").get("IpPermissions"))):
        rule = section(rule)
        ranges = [section(r) for key in ("IpRanges", "Ipv6Ranges") for r in items(rule.get(key))]
        for world in {str(r.get("CidrIp", r.get("CidrIpv6"))) for r in ranges} & set(_WORLD):
            yield (
                f"provider.security_group.IpPermissions.{index}: expected no port open to the world, "
                f"got port {describe_value(rule.get('FromPort'))} open to {world}"
            )


def gcp(config: Config) -> Iterator[str]:
    """Check zone, project, instance fields, and public addresses."""
    yield from _place(config, "region", "availability_zone", "project_id")
    known = set(_GCE.split())
    for path, node in _node_configs(config):
        if node.keys() & {"acceleratorType", "acceleratorConfig"}:  # a TPU: its fields differ
            continue
        yield from (
            unknown_key(path, str(key), known, "a Compute Engine instance")
            for key in node
            if key not in known
        )
        interfaces = items(node.get("networkInterfaces"))
        if not interfaces:
            yield (
                f"{path}.networkInterfaces: expected one without accessConfigs, got none: Ray would give "
                "the node a public address in the default network, whose port 22 is open to the world"
            )
        for index, interface in enumerate(interfaces):
            if "accessConfigs" in section(interface):
                yield (
                    f"{path}.networkInterfaces.{index}.accessConfigs: expected none, got a public address, "
                    "which opens the node's ports to the world"
                )


def local(config: Config) -> Iterator[str]:
    """Check addresses, and that the head runs no trials (this provider has no node types to set that)."""
    provider = section(config, "provider")
    if "coordinator_address" not in provider:
        for key, example in (("head_ip", "an address"), ("worker_ips", "a list of addresses")):
            if not provider.get(key):
                yield f"provider.{key}: expected {example}, got {describe_value(provider.get(key))}"
    if provider.get("head_ip") in items(provider.get("worker_ips")):
        yield f"provider.worker_ips: expected other hosts than the head, got {provider['head_ip']} among them"
    low, high = count(config.get("min_workers")), count(config.get("max_workers"))
    if low is not None and high is not None and low > high:
        yield f"min_workers: expected at most max_workers, {high}, got {low}"
    starts = [c for c in items(config.get("head_start_ray_commands")) if "ray start" in str(c)]
    for command in starts or [""]:
        if not re.search(r"--num-cpus[= ]0\b", str(command)):
            yield (
                "head_start_ray_commands: expected `ray start --head --num-cpus=0`, so that the head runs no "
                f"trials, got {describe_value(command or None)}"
            )
