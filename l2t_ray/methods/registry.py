"""The methods that a configuration knows by name: one line each."""

from l2t_ray.methods.balanced_softmax import BalancedSoftmaxConfig
from l2t_ray.methods.class_balanced import ClassBalancedConfig
from l2t_ray.methods.cross_entropy import CrossEntropyConfig
from l2t_ray.methods.forward_correction import ForwardCorrectionConfig
from l2t_ray.methods.gce import GCEConfig
from l2t_ray.methods.glc import GLCConfig
from l2t_ray.methods.l2r import L2RConfig
from l2t_ray.methods.l2t_dln import L2TDLNConfig
from l2t_ray.methods.mask_loss import MaskLossConfig
from l2t_ray.methods.mentornet import MentorNetConfig
from l2t_ray.methods.mw_net import MWNetConfig
from l2t_ray.methods.recommended import RecommendedConfig
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.methods.slf import SLFConfig
from l2t_ray.methods.static_dln import StaticDLNConfig
from l2t_ray.methods.task_loss import TaskLossConfig
from l2t_ray.methods.true_labels import TrueLabelsConfig

METHODS: tuple[type[MethodSettings], ...] = (
    RecommendedConfig,
    L2TDLNConfig,
    CrossEntropyConfig,
    GCEConfig,
    StaticDLNConfig,
    TaskLossConfig,
    ForwardCorrectionConfig,
    GLCConfig,
    MWNetConfig,
    MentorNetConfig,
    L2RConfig,
    SLFConfig,
    BalancedSoftmaxConfig,
    ClassBalancedConfig,
    MaskLossConfig,
    TrueLabelsConfig,
)

DEFAULT_METHOD = RecommendedConfig
"""What a configuration trains that names no method."""
DEFAULT_CONTROL = CrossEntropyConfig
"""What it is held against where no controls are named."""
