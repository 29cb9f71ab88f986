"""From a configuration to a data set, its division and its labels."""

from pathlib import Path

import numpy as np

from l2t_ray.data import catalog, imbalance, label_files, noise, splits
from l2t_ray.data.box_noise import NoisyBoxes, noisy_boxes
from l2t_ray.data.boxed_sets import BoxedDataset, BoxedSet
from l2t_ray.data.catalog import Dataset
from l2t_ray.data.checked import AnyDataset
from l2t_ray.data.example_sets import ExampleDataset
from l2t_ray.data.masked_sets import MaskedDataset
from l2t_ray.data.similar import similar_classes
from l2t_ray.data.splits import Policy
from l2t_ray.interfaces import UserError
from l2t_ray.settings.experiment import DataConfig, ExperimentConfig
from l2t_ray.settings.sections import BOX_NOISE, BoxesConfig, MasksConfig

DEFAULT_ROOT = Path("data")


def data_root(environment: str | None, configured: Path | None) -> Path:
    """Where the image files are: as configured, or else as the environment (L2T_DATA) says."""
    return configured or (Path(environment) if environment else DEFAULT_ROOT)


def load_dataset(data: DataConfig) -> Dataset:
    """
    Raises:
        UserError: if it cannot be opened, or is no set of images with labels.
    """
    dataset = open_dataset(data)
    if not isinstance(dataset, Dataset):
        kinds = {MaskedDataset: "masks", BoxedDataset: "boxes", ExampleDataset: "examples of its own"}
        raise UserError(
            f"data.name={data.name} has {kinds[type(dataset)]}, and this needs images with a label each; name another "
            "set."
        )
    return dataset


def open_dataset(data: DataConfig) -> AnyDataset:
    return catalog.load(
        data.name,
        root=data.root or DEFAULT_ROOT,
        verify=data.verify,
        download=data.download,
        image_size=data.image_size,
        shrink=data.masks.shrink,
        options=data.options,
    )


def label_setting(data: DataConfig) -> tuple[str, str, str] | None:
    """The first setting of images with one label each that is set: its key, its value, and the value that says
    nothing; None: none is."""
    for key, value, usual in (
        ("data.noise.kind", data.noise.kind, "none"),
        ("data.validation_labels", data.validation_labels, "clean"),
        ("data.crop_padding", data.crop_padding, "zero"),
    ):
        if value != usual:
            return key, value, usual
    return None


def refuse_other_sections(data: DataConfig, what: str) -> None:
    """
    Args:
        what: the set's images have: `masks`, `boxes` or another thing.

    Raises:
        UserError: if settings of what they have not are set.
    """
    for key, is_set in (("masks", data.masks != MasksConfig()), ("boxes", data.boxes != BoxesConfig())):
        if is_set and key != what:
            raise UserError(f"data.{key} is of images with {key}, and {data.name} has {what}; leave data.{key} out.")


def build_policy(config: ExperimentConfig, dataset: AnyDataset) -> Policy:
    """Which examples are trained and validated on. Parts are balanced by class, where each example has one, but for an
    imbalance that is set.

    Raises:
        UserError: if there are too few images, or an imbalance is set that is not of such images, or of no class.
    """
    policy, setting = _balanced_policy(config, dataset), config.data.imbalance
    if setting.kind == "none":
        return policy
    if setting.kind == "rare":
        return _with_rare(config, dataset, policy)
    labels = getattr(dataset.train, "labels", None)
    if labels is None:
        raise UserError(
            f"data.imbalance.kind is {setting.kind!r}, which is of examples with one label each, and that is not what "
            f"{config.data.name} has; set data.imbalance.kind=none."
        )
    return imbalance.thinned(policy, labels, setting.kind, setting.factor, config.seed, dataset.train.class_names)


def _with_rare(config: ExperimentConfig, dataset: AnyDataset, policy: Policy) -> Policy:
    train, setting = dataset.train, config.data.imbalance
    names = list(train.class_names)
    if setting.of not in names:
        raise UserError(
            f"data.imbalance.of is {setting.of!r}, and {config.data.name} has the classes {', '.join(names)}; name one "
            "of them."
        )
    label = names.index(setting.of)
    if isinstance(train, BoxedSet):
        has_class = np.array([(boxes.labels == label).any() for boxes in train.boxes])
    elif (labels := getattr(train, "labels", None)) is not None:
        has_class = labels == label
    else:
        raise UserError(
            f"data.imbalance.kind is 'rare', which is of examples with one label each or with boxes, and that is not "
            f"what {config.data.name} has; set data.imbalance.kind=none."
        )
    return imbalance.with_rare(policy, has_class, setting.factor, config.seed, label, setting.of)


def _balanced_policy(config: ExperimentConfig, dataset: AnyDataset) -> Policy:
    data, labels = config.data, getattr(dataset.train, "labels", None)
    has_several, class_names = labels is None, dataset.train.class_names
    if labels is None:
        labels, class_names = np.zeros(len(dataset.train), dtype=np.int64), None
    shared = {"num_train": data.num_train, "class_names": class_names}
    if dataset.validation is not None:
        if data.split == "redivide":
            whose = f"of {data.name} are" if has_several else "were"
            where = "" if has_several else " below data.root"
            raise UserError(
                f"data.split is 'redivide', but validation images {whose} set apart{where}; set data.split=fixed."
            )
        return splits.given(labels, dataset.validation, config.seed, **shared)
    divide = splits.fixed if data.split == "fixed" else splits.redivided
    return divide(labels, data.num_validation, config.seed, **shared)


def observed_labels(config: ExperimentConfig, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The training labels as the student sees them, and the matrix of the noise: row the class, column the label.

    Labels that were brought as a file have the matrix that they show.

    Raises:
        UserError: if a file does not fit the data set, or the data set has no such noise.
    """
    labels, num_classes = dataset.train.labels, dataset.num_classes
    setting, seed = config.data.noise, config.seed
    match setting.kind:
        case "none":
            return labels, np.eye(num_classes)
        case "flip_to_two":
            return noise.flip_to_two(labels, setting.rate, num_classes, seed)
        case "flip_to_one":
            return noise.flip_to_one(labels, setting.rate, num_classes, seed)
        case "uniform":
            return noise.uniform(labels, setting.rate, num_classes, seed)
        case "flip_to_similar":
            similar = similar_classes(dataset.name)
            if similar is None:
                raise UserError(
                    f"data.noise.kind=flip_to_similar knows cifar10 and cifar100 alone, not {dataset.name}; "
                    "give a transition matrix of your own with data.noise.kind=matrix."
                )
            return noise.flip_to_similar(labels, setting.rate, similar, seed)
        case "shifted" | "scaled" | "dropped" | "mislabelled" | "mixed":
            raise UserError(
                f"data.noise.kind={setting.kind} is of images with boxes, and {dataset.name} has one label an image; "
                "set data.noise.kind=flip_to_two."
            )
        case "matrix":
            assert setting.file is not None
            matrix = label_files.read_matrix(
                setting.file, num_classes, column=setting.column, class_names=dataset.train.class_names
            )
            return noise.apply_transition(labels, matrix, seed), matrix
        case "labels":
            assert setting.file is not None
            num_own = None if dataset.validation is None else len(labels) - len(dataset.validation)
            observed = label_files.read_labels(setting.file, dataset.train, column=setting.column, num_own=num_own)
            return observed, noise.realised(labels, observed, num_classes)


def observed_boxes(config: ExperimentConfig, dataset: BoxedDataset) -> NoisyBoxes | None:
    """The boxes of the training set under noise; None: there is none."""
    noise = config.data.noise
    if noise.kind not in BOX_NOISE:
        return None
    return noisy_boxes(dataset.train, noise.kind, noise.rate, strength=noise.strength, seed=config.seed)
