"""The paper's figures, and what they are said to be."""

from l2t_ray.reports.paper_accuracies import ABLATION, COPIED, LEARNING_RATES, noisy_labels


def test_copied_rows_say_so():
    column = noisy_labels("cifar100", 0.4)
    assert column["l2t_dln-reweighted"].shown() == "61.27 ± 0.51" and column["l2r"].source == "paper"
    assert {arm for arm, cell in column.items() if cell.source == COPIED} == {"cross_entropy", "mentornet", "mw_net"}
    assert noisy_labels("cifar10", 0.3) == {} == noisy_labels("digits", 0.4)


def test_gains_of_the_ablation():
    """The supplement's text speaks of +.48 by the LSTM and +.23 by reweighting over 90.17."""
    base = ABLATION[False, False].accuracy
    assert round(ABLATION[True, False].accuracy - base, 2) == 0.48
    assert round(ABLATION[False, True].accuracy - base, 2) == 0.23
    assert LEARNING_RATES["slf"][0.5].accuracy < 20 < LEARNING_RATES["l2t_dln"][0.5].accuracy
