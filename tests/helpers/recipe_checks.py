"""What is wrong with a recipe: schemas of its YAML files, which refuse unknown fields, and linters."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from jsonschema.validators import validator_for
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from tests.helpers import ROOT

SKYPILOT = json.loads((Path(__file__).parent / "skypilot_schema.json").read_text("utf-8"))


def errors(document: Any, schema: dict) -> list[str]:
    """What a schema finds wrong with a document: "PATH: MESSAGE"."""
    return [f"{error.json_path}: {error.message}" for error in validator_for(schema)(schema).iter_errors(document)]


def lint(script: Path) -> str:
    """What bash and ShellCheck say of a script."""
    parsed = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    command = ["shellcheck", "--rcfile", ROOT / ".shellcheckrc", script]
    return parsed.stderr + subprocess.run(command, capture_output=True, text=True, check=False).stdout


def jobset_schema() -> dict:
    """The schema of a JobSet with all that Kubernetes knows of Jobs and pods.

    Kubeflow's models are generated from the same Go types as JobSet's resource definition. They know less in three
    ways: unknown fields are allowed, values of enumerations are only in descriptions, and quantities (4, "4", "1Gi")
    have no type.
    """
    schema = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    _make_strict(schema)
    schema["$defs"]["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": ["string", "number"]}
    schema["$defs"]["IoK8sApimachineryPkgUtilIntstrIntOrString"] = {"type": ["string", "integer"]}
    # The enumerations of JobSet's own definition, github.com/kubernetes-sigs/jobset, config/components/crd.
    policy = schema["$defs"]["JobsetV1alpha2FailurePolicy"]["properties"]
    policy["restartStrategy"]["enum"] = ["Recreate", "BlockingRecreate"]
    rule = schema["$defs"]["JobsetV1alpha2FailurePolicyRule"]["properties"]
    rule["action"]["enum"] = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    return schema


def _make_strict(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            _make_strict(part)
    elif isinstance(node, dict):
        if len(node.get("anyOf", ())) == 2 and node["anyOf"][1] == {"type": "null"}:
            node.update(node.pop("anyOf")[0])  # an optional field
        if "properties" in node:
            node.setdefault("additionalProperties", False)
        description = node.get("description")
        if isinstance(description, str):
            values = re.findall(r'- `"(\w+)"`', description.partition("Possible enum values:")[2])
            if values and node.get("type") == "string":
                node["enum"] = values
        for part in node.values():
            _make_strict(part)
