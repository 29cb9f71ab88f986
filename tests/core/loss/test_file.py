"""The file of a learned loss: what it holds comes back, and no other file gives a loss that looks right."""

import json
import math
import os
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from l2t_ray.core.loss.network import DynamicLossNetwork

SPEC = {"hidden": 40, "layers": 5, "pairs": "sigmoid", "activation": "leaky_relu"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "loss.safetensors"


@pytest.fixture
def put(path):
    """`put(spec, phi, **metadata)`: a file as versions without a checksum wrote it."""

    def put(spec, phi=None, **metadata):
        phi = DynamicLossNetwork(seed=3).phi.detach() if phi is None else phi
        text = spec if isinstance(spec, str) else json.dumps(spec)
        save_file({"phi": phi}, str(path), metadata={"format": "l2t_ray.loss/1", "spec": text, **metadata})

    return put


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        DynamicLossNetwork.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_file_without_a_checksum_is_read_still(path, put):
    put(SPEC)
    assert torch.equal(DynamicLossNetwork.load(path).phi, DynamicLossNetwork(seed=3).phi)


def test_a_foreign_file_is_refused(path):
    save_file({"weight": torch.zeros(3)}, str(path))
    refused(path, r"loss.safetensors is not a learned loss: expected format 'l2t_ray.loss/3'")
    path.write_text("not a tensor file at all")
    refused(path, r"is not a learned loss, or is damaged")


def test_a_file_of_a_later_version_says_so(path, put):
    put(SPEC, format="l2t_ray.loss/4")
    refused(path, r"is of the format l2t_ray.loss/4, and this version reads up to l2t_ray.loss/3; update l2t_ray")
    put({**SPEC, "temperature": 2})
    refused(path, r"has 'temperature' in its architecture, which this version does not know")


def test_every_cut_file_is_refused(path):
    DynamicLossNetwork(hidden=3, layers=2).save(path)
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        refused(path, "is not a learned loss")
    path.write_bytes(whole + b"\0")
    refused(path, "is not a learned loss")


def test_a_flipped_bit_in_any_byte_is_noticed(path):
    DynamicLossNetwork(hidden=3, layers=2, memory=3.0).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(ValueError):
            DynamicLossNetwork.load(path)


@pytest.mark.parametrize("claim", [{"layers": 10**9}, {"hidden": 10**9}, {"label_table": 10**6}, {"channel": 10**18}])
def test_a_header_that_claims_too_much_is_refused_before_anything_is_built(path, put, claim):
    put({**SPEC, **claim})
    tracemalloc.start()
    refused(path, "its architecture of 5,000 weights has")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "spec",
    [
        {**SPEC, "hidden": "40"},
        {**SPEC, "hidden": True},
        {**SPEC, "hidden": -40},
        {**SPEC, "hidden": 40.0},
        {**SPEC, "layers": 1},
        {**SPEC, "pairs": "tanh"},
        {**SPEC, "pairs": None},
        {**SPEC, "label_table": -3},
        {**SPEC, "channel": 1, "pairs": "softmax"},
        {**SPEC, "memory": math.nan},
        {**SPEC, "mean": ["pairs"]},
        [SPEC],
        None,
        "{",
        "[" * 10_000,
    ],
    ids=str,
)
def test_an_architecture_that_is_none_is_refused(path, put, spec):
    put(spec)
    refused(path, "is not a learned loss, or is damaged")


def test_weights_must_fit_the_architecture_and_be_finite_and_single(path, put):
    put(SPEC, torch.zeros(10))
    refused(path, "architecture has 5000 weights, the file holds 10")
    put(SPEC, torch.zeros(5000, dtype=torch.float64))
    refused(path, "does not describe one vector")
    put(SPEC, torch.zeros(50, 100))
    refused(path, "does not describe one vector")
    put(SPEC, torch.full((5000,), math.inf))
    refused(path, "weights that are not finite")


def test_what_is_no_file_is_refused_without_waiting(path):
    with pytest.raises(FileNotFoundError, match=r"there is no learned loss at .*loss.safetensors"):
        DynamicLossNetwork.load(path)
    path.mkdir()
    refused(path, "is a directory; give the file")
    path.rmdir()
    os.mkfifo(path)
    refused(path, "is no regular file; give the file")


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(path, monkeypatch):
    DynamicLossNetwork(seed=1).save(path)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        DynamicLossNetwork(seed=2).save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
