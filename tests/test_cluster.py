"""`cluster.yaml` against Ray's own schema, and against three mistakes that the schema lets pass."""

from pathlib import Path

import pytest
import yaml

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
