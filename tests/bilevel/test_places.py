"""Where tensors are looked up, and the modes of a module's parts."""

import pytest
import torch
from torch import nn

from l2t_ray.bilevel.places import Modes, Places
from l2t_ray.interfaces import UserError


class Keeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        self.kept = ([self.weight, "text"], {"inner": {"other": self.other}})
        vars(self)["again"] = self.weight


def test_tensors_are_put_wherever_plain_attributes_hold_them_and_are_back_afterwards():
    module = Keeper()
    weight, other = module.weight, module.other
    undo = Places(module).put({"weight": torch.zeros(2), "other": torch.zeros(3)})
    assert module.weight is module.kept[0][0] is vars(module)["again"]
    assert module.weight.tolist() == [0, 0] and module.kept[1]["inner"]["other"].tolist() == [0, 0, 0]
    undo()
    assert module.weight is module.kept[0][0] is vars(module)["again"] is weight
    assert module.other is module.kept[1]["inner"]["other"] is other


def test_what_the_module_itself_has_put_into_an_attribute_meanwhile_stays():
    module = Keeper()
    undo = Places(module).put({"weight": torch.zeros(2)})
    module.kept[0].clear()
    vars(module)["again"] = "own"
    undo()
    assert module.kept[0] == [] and vars(module)["again"] == "own"


def test_attributes_that_hold_something_else_by_now_are_left_alone():
    module = Keeper()
    places = Places(module)
    module.kept[0][0] = own = torch.ones(1)
    places.put({"weight": torch.zeros(2)})
    assert module.kept[0][0] is own


def part_modes(module):
    return [part.training for part in module.modules()]


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())


def test_training_leaves_each_part_as_its_owner_left_it():
    module = net()
    module[1].eval()
    modes = Modes(module)
    assert part_modes(module) == [True, True, False, True]
    before = modes.put(False)
    assert part_modes(module) == [False] * 4
    modes.put(True)
    assert part_modes(module) == [True, True, False, True]
    modes.undo(before)
    assert part_modes(module) == [True, True, False, True]


def test_a_module_in_evaluation_mode_as_a_whole_trains_as_a_whole():
    module = net().eval()
    modes = Modes(module)
    before = modes.put(True)
    assert part_modes(module) == [True] * 4
    modes.undo(before)
    assert part_modes(module) == [False] * 4


def test_a_modules_own_train_and_eval_have_their_say():
    class Own(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            self[2].train()  # draws in evaluation, too
            return self

    module = Own(*net())
    modes = Modes(module)
    assert part_modes(module) == [True] * 4  # nobody has called it yet
    modes.put(True)
    assert part_modes(module) == [True, True, False, True]
    modes.put(False)
    assert part_modes(module) == [False, False, False, True]


class Merging(nn.Linear):
    """As an adapter that merges itself into the weight for evaluation."""

    def train(self, mode=True):
        with torch.no_grad():
            self.weight.add_(1.0 if mode else -1.0)
        return super().train(mode)


def test_a_mode_that_changes_weights_is_refused_and_undone():
    module = Merging(2, 3)
    before = module.weight.detach().clone()
    with pytest.raises(UserError, match=r"train\(\) or eval\(\) of the model's Merging changes its weights"):
        Modes(module)
    assert torch.equal(module.weight, before)
