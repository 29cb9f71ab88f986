"""`cluster.yaml` against Ray's own schema and three mistakes that it lets pass; `deploy/rayjob.yaml` against KubeRay's
documented fields, which are listed here as far as they are in use: no Python package has KubeRay's own schema.
"""

from pathlib import Path

import jsonschema
import pytest
import yaml

from l2t_ray.settings.experiment import load

PATH = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture
def cluster():
    return yaml.safe_load(PATH.read_text())


def test_passes_rays_schema(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_a_misspelt_key_would_be_noticed(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster["idle_timeout_minuts"] = 3
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(cluster))


def test_what_the_schema_does_not_check(cluster):
    """Without node types AWS defaults are filled in; a type's minimum may exceed its maximum; versions may drift."""
    assert set(cluster["available_node_types"]) == {"head", "gpu"}
    assert all(kind["min_workers"] <= kind["max_workers"] for kind in cluster["available_node_types"].values())
    assert "min_workers" not in cluster
    lock = (PATH.parent / "requirements.lock").read_text()
    version = cluster["docker"]["image"].split(":")[1].split("-")[0]
    assert f"ray=={version}" in lock


def test_setup_installs_the_lock_and_the_head_trains_nothing(cluster):
    assert any("requirements.lock" in command for command in cluster["setup_commands"])
    assert "GPU" not in cluster["available_node_types"]["head"]["resources"]
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert not any("0.0.0.0" in command for command in starts)


def record(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
AMOUNTS = {"type": "object", "additionalProperties": TEXT}
CONTAINER = record(
    ["name", "image", "resources"],
    name=TEXT,
    image=TEXT,
    resources=record(["requests", "limits"], requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts={"type": "array", "items": record(["name", "mountPath"], name=TEXT, mountPath=TEXT)},
)
CLAIM = record(["claimName"], claimName=TEXT)
POD = record(
    ["containers"],
    containers={"type": "array", "minItems": 1, "items": CONTAINER},
    volumes={"type": "array", "items": record(["name"], name=TEXT, persistentVolumeClaim=CLAIM)},
)
GROUP = {"rayStartParams": AMOUNTS, "template": record(["spec"], spec=POD)}
CLUSTER = record(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=record(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(idleTimeoutSeconds=COUNT),
    headGroupSpec=record(["rayStartParams", "template"], **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": record(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            **GROUP,
        ),
    },
)
RAY_JOB = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record(["name"], name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"}),
    spec=record(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture
def job():
    job, claim = yaml.safe_load_all((PATH.parent / "deploy/rayjob.yaml").read_text())
    assert claim["kind"] == "PersistentVolumeClaim"
    return job


def test_the_kubernetes_job_has_kuberays_fields(job):
    jsonschema.validate(job, RAY_JOB)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 4
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, RAY_JOB)


def test_the_kubernetes_job_fits_the_rest(job):
    spec = job["spec"]["rayClusterSpec"]
    assert f"ray=={spec['rayVersion']}" in (PATH.parent / "requirements.lock").read_text()
    assert f"rayproject/ray:{spec['rayVersion']}-" in (PATH.parent / "deploy/Dockerfile").read_text()
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0" and workers["minReplicas"] <= workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" in container["resources"]["limits"]
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 3
    _, path, _, config, *overrides = job["spec"]["entrypoint"].split()
    for file in (path, config):
        assert (PATH.parent / file.removeprefix("/home/ray/l2t_ray/")).exists()
    load(PATH.parent / config.removeprefix("/home/ray/l2t_ray/"), overrides)
