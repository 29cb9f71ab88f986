"""`fit(precision="bf16")` trains a model whose operations are in bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.assembly.fit import fit
from l2t_ray.interfaces import UserError


def examples(num):
    labels = torch.arange(num) % 3
    return torch.randn(num, 6, generator=torch.Generator().manual_seed(num)) + 2 * F.one_hot(labels, 6), labels


def fitted(precision, model=None, **arguments):
    torch.manual_seed(0)
    own = model or nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 3))
    sizes = {"num_rounds": 8, "num_steps": 3, "batch_size": 12, "val_batch_size": 12, "warm_share": 0.2}
    return fit(own, train=examples(48), validation=examples(24), precision=precision, **(sizes | arguments))


@pytest.fixture(scope="module")
def both():
    return fitted(None, try_first=False), fitted("bf16")


def test_it_learns_as_in_single_precision(both):
    exact, cast = both
    inputs, labels = examples(300)
    scores = [(result.predict(inputs) == labels).float().mean().item() for result in both]
    assert scores[1] > 0.7 and scores[1] == pytest.approx(scores[0], abs=0.05)
    assert {parameter.dtype for parameter in cast.model.parameters()} == {torch.float32} == {cast.loss.phi.dtype}
    assert not torch.equal(cast.model[0].weight, exact.model[0].weight)


def test_hypergradients_are_finite_and_close(both):
    """In the first learned round, before the two trainings have gone apart."""
    exact, cast = (result.history["hypergradient_norm"].dropna() for result in both)
    assert len(cast) == len(exact) == 6 and cast.gt(0).all()
    assert cast.iloc[0] == pytest.approx(exact.iloc[0], rel=0.1)


def test_what_was_begun_in_another_precision_is_not_gone_on_with(tmp_path):
    short = {"num_rounds": 1, "method": "cross_entropy", "warm_share": None, "try_first": False}
    fitted("bf16", checkpoint=tmp_path / "one", **short)
    with pytest.raises(UserError, match=r"precision is torch\.bfloat16 there and as the model has it here"):
        fitted(None, checkpoint=tmp_path / "one", **short)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_is_refused(dtype):
    with pytest.raises(UserError, match="precision='bf16' is for a model of float32 parameters, got"):
        fitted("bf16", nn.Linear(6, 3).to(dtype))


def test_an_engine_that_torch_does_not_cast_in_is_refused():
    with pytest.raises(UserError, match=r"not for method\.engine=forward_over_reverse: .*take the engine store or"):
        fitted("bf16", method={"name": "l2t_dln", "engine": "forward_over_reverse"})
