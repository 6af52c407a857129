"""JSON schemas of KubeRay's RayCluster and RayJob: all field names; types of the fields that we use.

Source of the fields: `ray.io/v1` of KubeRay 1.7.0, and core/v1 pods of Kubernetes.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_ANY: Schema = {}
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number", "minimum": 0}
_MAP: Schema = {"type": "object"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "integer", "number"]}}


def _object(required: str, fields: dict[str, Schema], free: str = "") -> Schema:
    """Return the schema of a mapping with these fields, the names in `free` (any value), and no others."""
    properties = {**dict.fromkeys(free.split(), _ANY), **fields}
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def _list(of: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": of, "minItems": least}


_NAMED: Schema = {"type": "object", "properties": {"name": _TEXT}, "required": ["name"]}
_CONTAINER = _object(
    "name image",
    {
        "name": _TEXT,
        "image": _TEXT,
        "env": _list(_NAMED),
        "envFrom": _list(_MAP),
        "resources": _object("", {"requests": _QUANTITIES, "limits": _QUANTITIES, "claims": _list(_MAP)}),
        "volumeMounts": _list(
            _object(
                "name mountPath",
                {"name": _TEXT, "mountPath": _TEXT},
                "readOnly subPath subPathExpr mountPropagation recursiveReadOnly",
            )
        ),
        "ports": _list(_MAP),
        "command": _list(_TEXT),
        "args": _list(_TEXT),
        "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    },
    "lifecycle livenessProbe readinessProbe resizePolicy restartPolicy restartPolicyRules securityContext "
    "startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy tty volumeDevices "
    "workingDir",
)
_POD = _object(
    "containers",
    {
        "containers": _list(_CONTAINER, 1),
        "initContainers": _list(_CONTAINER),
        "volumes": _list(_NAMED),
        "nodeSelector": _TEXTS,
        "tolerations": _list(_MAP),
        "securityContext": _MAP,
        "serviceAccountName": _TEXT,
    },
    "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
    "ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride "
    "imagePullSecrets nodeName os overhead preemptionPolicy priority priorityClassName readinessGates "
    "resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates serviceAccount "
    "setHostnameAsFQDN shareProcessNamespace subdomain terminationGracePeriodSeconds "
    "topologySpreadConstraints",
)
_TEMPLATE = _object("spec", {"metadata": {"type": ["object", "null"]}, "spec": _POD})
_HEAD = _object(
    "template",
    {
        "template": _TEMPLATE,
        "rayStartParams": _TEXTS,
        "enableIngress": _FLAG,
        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
        "resources": _TEXTS,
        "labels": _TEXTS,
    },
    "headService ingressOptions",
)
_GROUP = _object(
    "groupName template",
    {
        "groupName": _TEXT,
        "template": _TEMPLATE,
        "rayStartParams": _TEXTS,
        "replicas": _COUNT,
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "numOfHosts": _COUNT,
        "idleTimeoutSeconds": _COUNT,
        "priority": {"type": "integer"},
        "resources": _TEXTS,
        "labels": _TEXTS,
    },
    "suspend scaleStrategy",
)
_CLUSTER = _object(
    "headGroupSpec",
    {
        "headGroupSpec": _HEAD,
        "workerGroupSpecs": _list(_GROUP),
        "rayVersion": _TEXT,
        "enableInTreeAutoscaling": _FLAG,
        "suspend": _FLAG,
        "authOptions": _object(
            "", {"mode": {"enum": ["token", "disabled"]}, "enableK8sTokenAuth": _FLAG, "secretName": _TEXT}
        ),
        "autoscalerOptions": _object(
            "",
            {
                "idleTimeoutSeconds": _COUNT,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "version": {"enum": ["v1", "v2"]},
            },
            "resources image imagePullPolicy securityContext env envFrom volumeMounts command args",
        ),
    },
    "managedBy headServiceAnnotations gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions "
    "upgradeStrategy",
)
_JOB = _object(
    "entrypoint",
    {
        "entrypoint": _TEXT,
        "rayClusterSpec": _CLUSTER,
        "clusterSelector": _TEXTS,
        "runtimeEnvYAML": _TEXT,
        "jobId": _TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "submitterConfig": _object("", {"backoffLimit": _COUNT}),
        "submitterPodTemplate": _TEMPLATE,
        "entrypointResources": _TEXT,
        "entrypointNumCpus": _NUMBER,
        "entrypointNumGpus": _NUMBER,
        "ttlSecondsAfterFinished": _COUNT,
        "preRunningDeadlineSeconds": {"type": "integer", "minimum": 1},
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
        "backoffLimit": _COUNT,
        "shutdownAfterJobFinishes": _FLAG,
        "suspend": _FLAG,
    },
    "metadata managedBy deletionStrategy",
)
# A DNS label; its length leaves room for the suffixes that KubeRay adds.
_NAME: Schema = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}
_METADATA: Schema = {"type": "object", "properties": {"name": _NAME}, "required": ["name"]}


def _resource(kind: str, spec: Schema) -> Schema:
    fields = {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": kind},
        "metadata": _METADATA,
        "spec": spec,
    }
    return _object("apiVersion kind metadata spec", fields, "status")


KINDS = {"RayCluster": _resource("RayCluster", _CLUSTER), "RayJob": _resource("RayJob", _JOB)}
