"""Manifests for Kubernetes and KServe. Both run the same container, with the same probes and resources."""

import math
from typing import Any

from pipelines.deploy.container import USER
from pipelines.deploy.workload import Workload, mebibytes

PROBE_PERIOD_S = 5
SPARE_S = 10  # beyond the drain, before a replica is killed
PORT_NAME = "http"

Fields = dict[str, Any]


def deployment(work: Workload) -> Fields:
    labels = {"app.kubernetes.io/name": work.name}
    scrape = {"prometheus.io/scrape": "true", "prometheus.io/port": str(work.port), "prometheus.io/path": "/metrics"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": work.name, "labels": labels, "annotations": {"enginewright/bundle": work.bundle_id}},
        "spec": {
            "replicas": work.replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": scrape}, "spec": pod(work, work.name)},
        },
    }


def service(work: Workload) -> Fields:
    labels = {"app.kubernetes.io/name": work.name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": work.name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": PORT_NAME, "port": 80, "targetPort": PORT_NAME}]},
    }


def inference_service(work: Workload) -> Fields:
    """KServe's, with a container of our own as predictor."""
    mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}  # Knative takes neither these probes nor these volumes
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": work.name, "annotations": {**mode, "enginewright/bundle": work.bundle_id}},
        "spec": {"predictor": {"minReplicas": work.replicas, **pod(work, "kserve-container")}},
    }


def pod(work: Workload, container_name: str) -> Fields:
    """A pod's specification: the server as a user without rights, its root read-only."""
    return {
        "containers": [container(work, container_name)],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": work.drain_s + SPARE_S,
        "volumes": [{"name": "tmp", "emptyDir": {}}],  # measured costs of speculation, and what libraries write
    }


def container(work: Workload, name: str) -> Fields:
    keys = {"name": f"{work.name}-api-keys", "key": "keys", "optional": True}
    return {
        "name": name,
        "image": work.image,
        "ports": [{"name": PORT_NAME, "containerPort": work.port, "protocol": "TCP"}],
        "env": [{"name": "ENGINEWRIGHT_API_KEYS", "valueFrom": {"secretKeyRef": keys}}],
        "resources": resources(work),
        "startupProbe": probe("/ready", failures=math.ceil(work.start_s / PROBE_PERIOD_S)),
        "readinessProbe": probe("/ready", failures=1),
        "livenessProbe": probe("/health", failures=3),  # an engine that failed does not come back by itself
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def resources(work: Workload) -> Fields:
    """What a replica gets: all it may come to need, and above that room for pages of the weights' file."""
    gpus = {"nvidia.com/gpu": str(work.gpus)} if work.gpus else {}
    return {
        "requests": {"cpu": str(work.cpus), "memory": mebibytes(work.memory_bytes), **gpus},
        "limits": {"memory": mebibytes(work.memory_bytes + work.stored_bytes), **gpus},
    }


def probe(path: str, failures: int) -> Fields:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": PROBE_PERIOD_S,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
