"""Which engine a round's hypergradient is taken with, where that is left to the memory that is free."""

import os
import socket
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from l2t_ray.bilevel.draws import unmoved_draws
from l2t_ray.bilevel.engines import EngineName, step_graph
from l2t_ray.bilevel.flat import clone_buffers
from l2t_ray.bilevel.second_order import SecondOrderOperators
from l2t_ray.bilevel.unroll import InnerProblem
from l2t_ray.interfaces import Batch, StudentState

STORE_SHARE = 0.5
"""Share of the memory that is free which `choose_engine` lets the stored graphs take. The rest is for the validation
pass, for the products' own temporaries, and for a count that sees tensors but not the allocator's losses."""

_CGROUP = Path("/sys/fs/cgroup")


class Choice(NamedTuple):
    engine: EngineName
    reason: str


def agreed_engine(
    problem: InnerProblem, student: StudentState, phi: Float[Tensor, " m"], batch: Batch, num_steps: int
) -> Choice:
    """`choose_engine` for a whole group: `store` if every worker has the memory for it. All of them must call it.

    Free memory differs between hosts, and workers on one host, or on one GPU, share it.
    """
    size = graph_bytes(problem, student, phi, batch)
    device, group = student.theta.device, problem.group
    place = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid if device.type == 'cuda' else ''}"
    places = torch.zeros(group.size, dtype=torch.float64, device=device)
    places[group.rank] = zlib.crc32(place.encode())
    places = group.sum(places)
    num_sharing = int((places == places[group.rank]).sum())
    choice = choose_engine(size, num_steps, free_bytes(device) // num_sharing)
    num_without = group.sum(torch.tensor([float(choice.engine != "store")], device=device)).item()
    if num_without and choice.engine == "store":
        return Choice("recompute", f"{num_without:.0f} of {group.size} workers lack the memory for stored graphs")
    return choice


def choose_engine(graph_bytes: int, num_steps: int, free_bytes: int) -> Choice:
    """The fastest exact engine whose memory fits: `store` while its graphs fit, else `recompute`.

    The rule is that short because the measurements are (benchmarks/): `store` is the faster of the two for every
    student and K measured, by the forward and backward pass it saves; `forward_over_reverse` is slower than
    `recompute` and takes more memory. All of them take the same steps to the last bit.

    Args:
        graph_bytes: of one step's stored graph (`graph_bytes`).
        num_steps: steps that the derivative goes back through.
        free_bytes: memory that may be used, on the device that trains the student.
    """
    needed, allowed = graph_bytes * num_steps, int(STORE_SHARE * free_bytes)
    sizes = f"{num_steps} stored graphs of {_mib(graph_bytes)} need {_mib(needed)}"
    if needed <= allowed:
        return Choice("store", f"{sizes}, within {_mib(allowed)}")
    return Choice("recompute", f"{sizes}, more than {_mib(allowed)}")


def graph_bytes(problem: InnerProblem, student: StudentState, phi: Float[Tensor, " m"], batch: Batch) -> int:
    """Memory of the tensors that one stored step keeps alive, measured by taking it once."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor), unmoved_draws(student.theta.device):
        graph = step_graph(problem, student.theta, phi, clone_buffers(student.buffers), batch, SecondOrderOperators())
    del graph  # not before: a storage that was freed and taken again must not pass for one
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device, or on a CPU within the limit that a container sets."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control groups, or no limit
        return free
    return min(free, limit - used)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
