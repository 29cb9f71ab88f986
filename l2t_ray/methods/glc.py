"""Loss correction by a matrix of label noise: estimated on clean images (GLC), or the true one (an oracle).

T[i, j] is the probability that an image of class i carries the label j. Forward correction (Patrini et al., CVPR 2017)
trains on `-log sum_i p_i T[i, y]`: the student's p is to explain the noisy label after it went through the noise, so
the p that fits best is that of the clean labels.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from l2t_ray.core.student import RowLoss, Trainee, cross_entropy
from l2t_ray.interfaces import Batch, Data, Group, MethodState, Metrics, RoundBatches, StudentState


def forward_corrected(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], matrix: Float[Tensor, "c c"]
) -> Float[Tensor, " n"]:
    """`-log sum_i softmax(logits)_i matrix[i, y]`, the cross-entropy where the matrix is the identity."""
    # In logarithms, since p underflows where the student is sure; log 0 = -inf drops out of the sum.
    return -(logits.log_softmax(dim=1) + matrix.log().T[labels]).logsumexp(dim=1)


def forward_correction(matrix: Float[Tensor, "c c"]) -> RowLoss:
    """The corrected loss with a matrix that is known, for `FixedLoss`."""
    return lambda logits, labels: forward_corrected(logits, labels, matrix.to(logits))


class ForwardCorrected:
    """The last step of gold loss correction (Hendrycks et al., NeurIPS 2018):

    1. Cross-entropy on the noisy images, for some rounds.
    2. T[i] = mean of the student's softmax over the clean images of class i, in evaluation mode. A class without
       clean images keeps the identity's row (`begin`).
    3. Forward correction on noisy images, plain cross-entropy on clean ones, in shared minibatches.

    The first is a phase of its own (`phases`), and the second is where this one begins. The paper trains a new student
    in step 3, with a budget of its own (`restarts`); by default the warm one goes on, so that the whole costs no more
    than any other method's steps. Learning rates follow the run's schedule either way. A row must be an image here,
    since whether it is clean is known by image.
    """

    def __init__(self, trainee: Trainee, data: Data, is_clean: Bool[Tensor, " images"], *, restarts: bool = False):
        """
        Args:
            data: whose validation images the matrix is estimated on.
            is_clean: by image of the training set (`Batch.indices`), whether its label is to be trusted.
            restarts: begin with a new student.
        """
        self._trainee, self._data, self._is_clean = trainee, data, is_clean.to(trainee.device)
        self._restarts = restarts

    def init(self) -> MethodState:
        matrix = torch.eye(self._data.num_classes, device=self._trainee.device)
        return MethodState(self._trainee.initial(), {"matrix": matrix})

    def begin(self, state: MethodState, index: int) -> MethodState:
        """Step 2, from the student as it is."""
        matrix = noise_matrix(self._trainee, state.student, self._data, self._data.epoch(index))
        student = self._trainee.initial() if self._restarts else state.student
        return MethodState(student, {**state.extra, "matrix": matrix})

    def round(self, state: MethodState, batches: RoundBatches, index: int) -> tuple[MethodState, Metrics]:
        trainee, matrix = self._trainee, state.extra["matrix"]
        rates = trainee.sgd.rates(index, len(batches.train))
        student, statistics = trainee.train(self._loss, state.student, matrix.reshape(-1), batches.train, rates)
        return state._replace(student=student), trainee.report(student, batches.val, statistics, rates[-1])

    def _loss(
        self, theta: Tensor, weights: Tensor, buffers: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        rows = self._trainee.rows(theta, buffers, batch)
        matrix = weights.view(self._data.num_classes, -1)
        losses = torch.where(
            self._is_clean[batch.indices[rows.owner]],
            cross_entropy(rows.logits, rows.labels),
            forward_corrected(rows.logits, rows.labels, matrix),
        )
        return rows.total(losses), rows.logits


@torch.no_grad()
def noise_matrix(trainee: Trainee, student: StudentState, data: Data, epoch: int) -> Float[Tensor, "c c"]:
    """What the student, trained on noisy labels, says of the validation images of each class, on average."""
    num_classes = data.num_classes
    sums = torch.zeros(num_classes, num_classes, device=trainee.device)
    for batch in data.validation(epoch):
        logits = trainee.outputs(student.theta, student.buffers, batch, training=False)
        sums.index_add_(0, batch.targets, logits.softmax(dim=1).to(sums))
    return _normalised(sums, trainee.group)


def _normalised(sums: Float[Tensor, "c c"], group: Group) -> Float[Tensor, "c c"]:
    sums = group.sum(sums)
    counts = sums.sum(dim=1, keepdim=True)  # a softmax adds 1 to its row
    return torch.where(counts > 0, sums / counts.clamp(min=1e-12), torch.eye(len(sums), device=sums.device))
