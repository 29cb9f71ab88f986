"""Fingerprints of the first rounds of everything, to the last bit: what a refactor must leave as it is.

    python tests/golden/digests.py write before.json      # at the commit to start from
    python tests/golden/digests.py compare before.json    # after the change, on the same machine

Processors and versions of PyTorch round differently, so fingerprints are compared on one machine, and never committed.
CIFAR-10 is looked for in L2T_DATA; without it those runs are left out, and named.
"""

import hashlib
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/methods")]

import test_contract as contract  # noqa: E402
from conftest import TwoThreads  # noqa: E402

from l2t_ray.assembly.run import build_run  # noqa: E402
from l2t_ray.parallel.group import SingleProcess  # noqa: E402
from l2t_ray.settings import experiment as configuration  # noqa: E402

ROUNDS = 20
CONFIGS = {
    "digits": 20,
    "digits_noise40": 20,
    "cifar10_noise_small16": 20,
    "released/cifar10_resnet8": 3,
}
TRACE = ("train_loss", "val_error", "gradient_norm", "hypergradient_norm", "phi_step_norm")


def digest(*parts) -> str:
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().numpy().tobytes()
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()[:16]


def arm_of(name: str, group=None):
    config = contract.configuration(name, num_rounds=ROUNDS)
    return contract.make_arm(config, configuration_dataset(config), group, contract.batch_norm_student())


def of_arm(arm) -> str:
    """20 rounds of an arm of the contract test: numbers of each round, the student at the end, and the loss."""
    state, rows = contract.run(arm, ROUNDS)
    return digest(trace(rows), *contract.tensors(state), *([] if arm.teacher is None else [arm.teacher.read().phi]))


def configuration_dataset(config):
    return contract.load_dataset(config.data)


def trace(rows) -> list:
    return [[row.get(name) for name in TRACE] for row in rows]


def of_config(name: str, rounds: int) -> str:
    root = os.environ.get("L2T_DATA", "data")
    overrides = [f"training.num_rounds={rounds}", "ray.enabled=false", f"data.root={root}", "data.verify=false"]
    overrides += ["training.eval_every=1000"] + (["controls=[cross_entropy]"] if "noise" in name else [])
    config = configuration.load(ROOT / f"configs/{name}.yaml", overrides)
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    checkpoint = run.train(start=None, store=None, on_row=lambda row: None)
    student = checkpoint.state.student
    phis = [phi for snapshots in checkpoint.snapshots.values() for phi in snapshots.values()]
    return digest(trace(checkpoint.rows), student.theta, student.velocity, *student.buffers.values(), *phis)


def of_two_workers(name: str) -> str:
    slots, barrier = [None, None], threading.Barrier(2)
    # Before either trains: what is built draws from the generator that both threads share.
    arms = [arm_of(name, TwoThreads(rank, slots, barrier)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        return digest(*pool.map(of_arm, arms))


def all_digests() -> dict[str, str]:
    torch.set_num_threads(1)
    found = {}
    for name in contract.METHODS:
        found[f"arm {name}"] = of_arm(arm_of(name))
        print(f"arm {name}: {found[f'arm {name}']}", flush=True)
    for name in ("l2t_dln", "l2t_dln-memory", "l2t_dln-warm_reweighted", "glc", "mw_net"):
        found[f"two workers {name}"] = of_two_workers(name)
        print(f"two workers {name}: {found[f'two workers {name}']}", flush=True)
    for name, rounds in CONFIGS.items():
        if "cifar" in name and "L2T_DATA" not in os.environ:
            print(f"left out: {name} (set L2T_DATA)")
            continue
        found[name] = of_config(name, rounds)
        print(f"{name}: {found[name]}", flush=True)
    return found


def main(mode: str, path: str) -> int:
    found = all_digests()
    if mode == "write":
        Path(path).write_text(json.dumps(found, indent=1))
        return 0
    expected = json.loads(Path(path).read_text())
    differing = [name for name in expected if found.get(name, expected[name]) != expected[name]]
    print(
        f"{len(expected) - len(differing)} of {len(expected)} as before" + "".join(f"\nDIFFERS: {n}" for n in differing)
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
