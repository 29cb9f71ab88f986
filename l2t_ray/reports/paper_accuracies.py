"""What the paper reports, to stand beside what is measured here; never mixed with it.

All figures are test accuracies in percent, from the supplement of L2T-DLN (Hai et al., NeurIPS 2023). Most of its
baselines for noisy labels equal, to the digit, those of Meta-Weight-Net (Shu et al., NeurIPS 2019), whose settings
differ (a longer schedule for cross-entropy); such figures say so.
"""

from typing import NamedTuple

PAPER = "paper"
COPIED = "paper (copied there from Shu et al. 2019)"


class Published(NamedTuple):
    """One figure of the paper: accuracy in percent, its spread over five restarts where one is given."""

    method: str
    accuracy: float
    std: float | None
    source: str

    def shown(self) -> str:
        return f"{self.accuracy:.2f}" if self.std is None else f"{self.accuracy:.2f} ± {self.std:.2f}"


def noisy_labels(data: str, rate: float) -> dict[str, Published]:
    """Table 1 (ResNet-32, flips to two classes), one of its four columns, by arm; empty for any other setting."""
    return _TABLE_1.get((data, round(rate, 3)), {})


def _column(
    cross_entropy: float, mentornet: float, mw_net: float, l2r: float, ours: tuple[float, float]
) -> dict[str, Published]:
    return {
        "cross_entropy": Published("Baseline", cross_entropy, None, COPIED),
        "mentornet": Published("MentorNet", mentornet, None, COPIED),
        "mw_net": Published("MW-Net", mw_net, None, COPIED),
        "l2r": Published("L2R", l2r, None, PAPER),
        "l2t_dln-reweighted": Published("L2T-DLN", *ours, PAPER),
    }


_TABLE_1 = {
    ("cifar10", 0.2): _column(76.83, 86.36, 90.33, 91.05, (92.11, 0.27)),
    ("cifar10", 0.4): _column(70.77, 81.76, 87.54, 88.71, (89.39, 1.20)),
    ("cifar100", 0.2): _column(50.86, 61.97, 64.22, 66.08, (70.05, 0.23)),
    ("cifar100", 0.4): _column(43.01, 52.66, 58.64, 60.51, (61.27, 0.51)),
}

SIMILARITY = {  # Table 2: data reweighting by metric, CIFAR-10, ResNet-8, clean labels
    "cosine": Published("Cosine", 89.20, None, PAPER),
    "dot": Published("Dot product", 89.27, None, PAPER),
    "minkowski": Published("Lp (p = 2)", 89.32, None, PAPER),
    "snr": Published("SNR", 90.70, None, PAPER),
}

ABLATION = {  # Table 3: (LSTM teacher instead of Adam, data reweighting), same setting
    (False, False): Published("DLN", 90.17, None, PAPER),
    (True, False): Published("DLN + LSTM", 90.65, None, PAPER),
    (False, True): Published("DLN + DR", 90.40, None, PAPER),
    (True, True): Published("DLN + LSTM + DR", 90.70, None, PAPER),
}

LEARNING_RATES = {  # Table 4: by arm and learning rate of the student
    "slf": {
        0.2: Published("SLF", 89.2, None, PAPER),
        0.3: Published("SLF", 87.5, None, PAPER),
        0.4: Published("SLF", 66.0, None, PAPER),
        0.5: Published("SLF", 13.5, None, PAPER),
    },
    "l2t_dln": {
        0.2: Published("L2T-DLN", 89.7, None, PAPER),
        0.3: Published("L2T-DLN", 88.1, None, PAPER),
        0.4: Published("L2T-DLN", 70.4, None, PAPER),
        0.5: Published("L2T-DLN", 49.0, None, PAPER),
    },
}
