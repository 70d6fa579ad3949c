"""What the API server would refuse: built-in kinds by Kubernetes' own schemas, custom ones by their CRD's.

Fields that a schema does not know are refused, too: the server would drop them silently. CRDs get their defaults first
and their CEL rules are evaluated; rules about ``oldSelf`` compare with an earlier version, and there is none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cel
import kubernetes_validate
from jsonschema import Draft202012Validator

from tests.deploy.render import Doc

KUBERNETES_VERSION = "1.34"
CRDS = Path(__file__).parent / "crds"
_FILES = {
    ("ray.io/v1", "RayJob"): "rayjob.json",
    ("ray.io/v1", "RayCluster"): "rayjob.json",
    ("monitoring.coreos.com/v1", "PodMonitor"): "podmonitor.json",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrule.json",
}


def violations(doc: Doc) -> tuple[str, ...]:
    """Every complaint about one object."""
    return _violations(json.dumps(doc))


@cache
def _violations(text: str) -> tuple[str, ...]:
    doc = json.loads(text)
    where = f"{doc['kind']} {doc['metadata']['name']}"
    key = (doc["apiVersion"], doc["kind"])
    if key not in _FILES:
        try:
            kubernetes_validate.validate(doc, KUBERNETES_VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return (f"{where}: {'.'.join(map(str, error.path))}: {error.message}",)
        return ()
    schema = crd(*key)
    with_defaults(schema, doc)
    found = [f"{where}: {'.'.join(map(str, e.path))}: {e.message}" for e in _validator(*key).iter_errors(doc)]
    return (*found, *(f"{where}: {path}: {message}" for path, message in broken_rules(schema, doc)))


@cache
def crd(api_version: str, kind: str) -> dict[str, Any]:
    """The structural schema of a custom kind."""
    schema: dict[str, Any] = json.loads((CRDS / _FILES[api_version, kind]).read_text())
    if kind == "RayCluster":  # its specification is that of a RayJob's cluster
        cluster = schema["properties"]["spec"]["properties"]["rayClusterSpec"]
        return {**schema, "properties": {**schema["properties"], "spec": cluster}}
    return schema


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    return Draft202012Validator(_strict(crd(api_version, kind)))


def _strict(schema: Any, root: bool = True) -> Any:
    """The schema that also refuses unknown fields; the object's own metadata is the server's business."""
    if isinstance(schema, list):
        return [_strict(s, False) for s in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: _strict(v, False) for k, v in schema.items() if k != "properties"}
    if "properties" in schema:
        made["properties"] = {k: _strict(v, False) for k, v in schema["properties"].items()}
        if root:
            made["properties"]["metadata"] = {"type": "object"}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            made["additionalProperties"] = False
    elif schema.get("type") == "object" and not {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(
        schema
    ):
        made["additionalProperties"] = False
    return made


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """``value`` with the schema's defaults filled in, in place, as the server does before it validates."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                with_defaults(inner, value[name])
        if isinstance(more := schema.get("additionalProperties"), dict):
            for name in set(value) - set(schema.get("properties", {})):
                with_defaults(more, value[name])
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for inner in value:
            with_defaults(schema["items"], inner)
    return value


def rules(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """(path, rule) of every CEL rule in a schema."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule
    for name, inner in schema.get("properties", {}).items():
        yield from rules(inner, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            yield from rules(schema[key], path + mark)


def broken_rules(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, message) of every CEL rule that ``value`` breaks."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value}):
            yield path.lstrip("."), rule["message"]
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from broken_rules(inner, value[name], f"{path}.{name}")
        if isinstance(more := schema.get("additionalProperties"), dict):
            for name in set(value) - set(schema.get("properties", {})):
                yield from broken_rules(more, value[name], f"{path}.{name}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for i, inner in enumerate(value):
            yield from broken_rules(schema["items"], inner, f"{path}.{i}")
