import torch

from l2t_ray.core.adam import AdamUpdate, Learned


def test_is_torchs_adam():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    weights = start.clone().requires_grad_()
    reference = torch.optim.Adam([weights], lr=0.1, weight_decay=0.3)
    learned = Learned.begin(start)
    for _ in range(20):
        gradient = torch.randn(5, generator=generator)
        weights.grad = gradient.clone()
        reference.step()
        learned = AdamUpdate(0.1, 0.3).step(learned, gradient)
        assert torch.equal(learned.weights, weights.detach())
    assert learned.num_updates == 20


def test_changes_nothing_in_place():
    begin = Learned.begin(torch.ones(2))
    AdamUpdate(0.1).step(begin, torch.ones(2))
    assert torch.equal(begin.weights, torch.ones(2)) and begin.num_updates == 0 and not begin.second_moment.any()


def test_finds_its_fields_among_others():
    learned = Learned.begin(torch.ones(2))
    assert Learned.out_of({"other": torch.zeros(1), **learned._asdict()}) == learned
