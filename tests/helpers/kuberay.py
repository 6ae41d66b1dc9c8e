"""The fields of KubeRay's resources and of the pods in them, as far as the files in `deploy/` could have them.

Written from Ray's "KubeRay CRD API reference" (docs.ray.io, cluster/kubernetes/references/api.html, of KubeRay 1.6.2) and, for
pods, from Kubernetes' own API reference (v1.28). A live Kubernetes drops what its resource definitions do not have.
"""

from typing import Any

TEXTS = {"*": str}
AMOUNTS = {"*": str}
"""Kubernetes also takes numbers; the files keep to quantities in quotes."""
VOLUME_SOURCES = {
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
    "hostPath": {"path": str, "type": str},
    "configMap": {"name": str},
    "secret": {"secretName": str},
}
CONTAINER = {
    "name": str,
    "image": str,
    "imagePullPolicy": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": dict}],
    "ports": [{"name": str, "containerPort": int}],
    "resources": {"requests": AMOUNTS, "limits": AMOUNTS},
    "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
    "securityContext": dict,
    "lifecycle": dict,
}
POD = {
    "containers": [CONTAINER],
    "initContainers": [CONTAINER],
    "volumes": [{"name": str, **VOLUME_SOURCES}],
    "tolerations": [{"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}],
    "nodeSelector": TEXTS,
    "affinity": dict,
    "restartPolicy": str,
    "serviceAccountName": str,
    "priorityClassName": str,
    "imagePullSecrets": [{"name": str}],
    "terminationGracePeriodSeconds": int,
    "securityContext": dict,
    "schedulerName": str,
}
TEMPLATE = {"metadata": {"labels": TEXTS, "annotations": TEXTS}, "spec": POD}
GROUP = {"template": TEMPLATE, "resources": TEXTS, "labels": TEXTS, "rayStartParams": TEXTS}
HEAD = {**GROUP, "headService": dict, "enableIngress": bool, "serviceType": str}
WORKERS = {
    **GROUP,
    "suspend": bool,
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "idleTimeoutSeconds": int,
    "scaleStrategy": {"workersToDelete": [str]},
    "numOfHosts": int,
}
AUTOSCALER = {
    "resources": {"requests": AMOUNTS, "limits": AMOUNTS},
    "image": str,
    "imagePullPolicy": str,
    "securityContext": dict,
    "idleTimeoutSeconds": int,
    "upscalingMode": str,
    "version": {"v1", "v2"},
    "env": list,
    "envFrom": list,
    "volumeMounts": list,
}
CLUSTER = {
    "upgradeStrategy": {"type": {"Recreate", "None"}},
    "authOptions": {"mode": {"disabled", "token"}, "enableK8sTokenAuth": bool, "secretName": str},
    "suspend": bool,
    "managedBy": str,
    "autoscalerOptions": AUTOSCALER,
    "headServiceAnnotations": TEXTS,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": {
        "redisUsername": dict,
        "redisPassword": dict,
        "externalStorageNamespace": str,
        "redisAddress": str,
    },
    "headGroupSpec": HEAD,
    "rayVersion": str,
    "workerGroupSpecs": [WORKERS],
}
JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "rayClusterSpec": CLUSTER,
    "submitterPodTemplate": TEMPLATE,
    "metadata": TEXTS,
    "clusterSelector": TEXTS,
    "submitterConfig": {"backoffLimit": int},
    "managedBy": str,
    "deletionStrategy": dict,
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "jobId": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "entrypointResources": str,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "ttlSecondsAfterFinished": int,
    "preRunningDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "suspend": bool,
}
RESOURCE = {
    "apiVersion": {"ray.io/v1"},
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": TEXTS, "annotations": TEXTS},
}
KINDS = {"RayCluster": {**RESOURCE, "spec": CLUSTER}, "RayJob": {**RESOURCE, "spec": JOB}}


def problems(value: Any, expected: Any, at: str = "") -> list[str]:
    """What of a value is not as its fields say: unknown ones, and those of another type."""
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return [f"{at} is no mapping"]
        known = [(key, expected.get(key, expected.get("*"))) for key in value]
        return [
            line
            for key, kind in known
            for line in ([f"{at}.{key} is unknown"] if kind is None else problems(value[key], kind, f"{at}.{key}"))
        ]
    if isinstance(expected, list):
        if not isinstance(value, list):
            return [f"{at} is no list"]
        return [line for number, one in enumerate(value) for line in problems(one, expected[0], f"{at}[{number}]")]
    if isinstance(expected, set):
        return [] if value in expected else [f"{at} is {value!r}, not one of {sorted(expected)}"]
    return [] if type(value) is expected else [f"{at} is {value!r}, not {expected.__name__}"]
