"""Gold loss correction (Hendrycks et al., NeurIPS 2018): forward correction by a matrix estimated on clean images."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from l2t_ray.core.student import Trainee, cross_entropy
from l2t_ray.interfaces import Batch, Data, Group, MethodState, Metrics, RoundBatches, StudentState
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.forward_correction import forward_corrected
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.phases import Phase, rounds_of
from l2t_ray.methods.schedules import SHU_2019, PaperSchedule
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.settings.record import Share


class GLCConfig(MethodSettings):
    """Gold loss correction: through a noise matrix estimated on the clean images (Hendrycks et al. 2018)."""

    paper_schedule: ClassVar[PaperSchedule | None] = SHU_2019
    goes_by_images: ClassVar[bool] = True

    name: Literal["glc"] = "glc"
    warm_share: Share = 0.3
    """Share of the rounds that train with plain cross-entropy before the matrix is estimated (not in the paper, whose
    first network has a budget of its own)."""
    restarts: bool = False
    """Begin with a new student after the warm rounds, as the paper does; false: go on with the warm one."""
    clean_images: Literal["mixed"] = "mixed"
    """After the warm rounds the validation images are trained on as well, with uncorrected cross-entropy (paper)."""

    @property
    def arm(self) -> str:
        return self.label or self.name

    @property
    def needs_clean_validation_labels(self) -> bool:
        return True

    def phases(self, parts: Parts) -> list[Phase]:
        plain = parts.source.plain()
        warm_up = Phase(0, FixedLoss(parts.trainee, cross_entropy), plain)
        corrected = ForwardCorrected(parts.trainee, plain, parts.is_clean, restarts=self.restarts)
        switch = rounds_of(self.warm_share, parts.num_rounds)
        return [warm_up, Phase(switch, corrected, parts.source.mixed(), corrected.begin)]


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
        rates = trainee.schedule.rates(index, len(batches.train))
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
