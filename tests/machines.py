"""A cluster of several machines, simulated on this one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def cluster_of(head: Mapping[str, Any], *machines: Mapping[str, Any]) -> Iterator[Any]:
    """Machines with the given resources, as a `ray.cluster_utils.Cluster`."""
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**quiet, **head})
    try:
        for resources in machines:
            cluster.add_node(**quiet, **resources)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
