"""The latest round as Ray serves it to Prometheus."""

import re
import sys
import time
import urllib.request

import pytest

from l2t_ray.distributed.gauges import Gauges

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # Ray collects every ten seconds

ROW = {
    "arm": "l2t_dln", "round": 7, "train_loss": 0.5, "val_error": 0.25, "images_per_second": 300.0,
    "seconds_data": 0.01, "seconds_unroll": 0.5, "seconds_hypergradient": 0.75, "seconds_collectives": 0.125,
    "seconds_teacher": 0.0625,
}  # fmt: skip


class Worker:
    def show(self):
        self._gauges = Gauges("my run")
        self._gauges.show(ROW)


def test_a_round_is_on_its_nodes_metrics_page(ray_cluster):
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    worker = ray.remote(Worker).options(num_cpus=0).remote()
    ray.get(worker.show.remote())
    (node,) = (node for node in ray.nodes() if node["Alive"])
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    give_up = time.monotonic() + 60
    while "ray_l2t_ray_round_seconds" not in (text := urllib.request.urlopen(page).read().decode()):
        assert time.monotonic() < give_up
        time.sleep(1)
    ours = [line for line in text.splitlines() if line.startswith("ray_l2t_ray_")]
    assert all('run="my run"' in line and 'arm="l2t_dln"' in line for line in ours)
    values = {re.match(r"(\w+)", line)[1]: float(line.split()[-1]) for line in ours if "_seconds" not in line}
    expected = {"round": 7, "train_loss": 0.5, "val_error": 0.25, "images_per_second": 300}
    assert values == {f"ray_l2t_ray_{name}": value for name, value in expected.items()}
    parts = {re.search(r'part="(\w+)"', line)[1]: float(line.split()[-1]) for line in ours if "_seconds" in line}
    assert parts == {name.removeprefix("seconds_"): value for name, value in ROW.items() if name.startswith("seconds_")}
