"""A trained student as one file, with all that it takes to build it and to give it images: what a run leaves behind.

A file may come from anywhere. It is held against its checksum, its sizes are compared before anything is built, and it
runs no code but that of the students this package knows; a student of one's own is given by hand.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from l2t_ray.data.augment import normalise
from l2t_ray.data.box_transforms import letterbox, placed
from l2t_ray.files import replaced
from l2t_ray.import_path import is_import_path
from l2t_ray.interfaces import UserError
from l2t_ray.settings.signature import takes
from l2t_ray.settings.student_section import student_record
from l2t_ray.students.initialise import seeded
from l2t_ray.students.known import STUDENTS, MakeStudent

FORMAT = "l2t_ray.model/1"
MODEL = "model.safetensors"
PATTERN = "model*.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What a file says of its model.

    Attributes:
        arm: the method that trained it.
        task: its name.
        student: the section `student` of its configuration, without what all students have.
        image_size: the height that the student was built for; None: its inputs are no images.
        mean, std: by which pixels in 0..1 are normalised, one a channel; none where inputs are no images.
        resized: files of images are scaled and cropped to squares of this size; None: taken as they are.
        frame: images are letterboxed to this height and width; None: taken as they are.
    """

    arm: str
    task: str
    student: Mapping[str, Any]
    class_names: Sequence[str]
    image_size: int | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    resized: int | None = None
    frame: Sequence[int] | None = None

    def __post_init__(self) -> None:
        sizes = [self.image_size, self.resized, *(self.frame or ())]
        numbers = [*self.mean, *self.std, *(size for size in sizes if size is not None)]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError("its sizes, mean and std are no numbers")
        if not self.class_names or len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise ValueError("its classes or channels do not fit together")
        if bool(self.mean) != (self.image_size is not None):
            raise ValueError("it has channels or a size alone, and images have both")

    @property
    def is_of_images(self) -> bool:
        return self.image_size is not None

    @property
    def shape(self) -> dict[str, int]:
        """What a student is built for."""
        classes = {"num_classes": len(self.class_names)}
        if self.image_size is None:
            return classes
        return classes | {"in_channels": len(self.mean), "image_size": self.image_size}


class TrainedModel(nn.Module):
    """A trained student. It is called with normalised images, which `preprocess` makes of pixels or files; one of other
    inputs with what its data set gives, by name where that has names.

    >>> model = l2t_ray.load_model("runs/NAME")
    >>> logits = model(model.preprocess("cat.png"))
    >>> print(model.class_names[logits.argmax()])
    """

    def __init__(self, student: nn.Module, card: ModelCard):
        super().__init__()
        self.student, self.card = student, card

    @property
    def class_names(self) -> Sequence[str]:
        return self.card.class_names

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Whatever the student gives; of classification the logits `[n, c]`."""
        return self.student(*inputs, **options)

    def preprocess(self, images: Any) -> Float[Tensor, "n c h w"]:
        """What the student reads, on its device: pixels as they were normalised in training.

        Args:
            images: uint8 pixels `[c, h, w]` or `[n, c, h, w]`, a tensor or an array; or the path of an image file, or
                several. Files are turned upright, converted and scaled as those of a training set are. Of a detector,
                images are letterboxed, and boxes are then in pixels of the frame (`card.frame`).

        Raises:
            UserError: if the student reads no images, these are no such pixels, or a file cannot be read.
        """
        if not self.card.is_of_images:
            raise UserError(
                "preprocess() is for images, and this model was trained on none; call it with what its data set gives."
            )
        if isinstance(images, str | Path):
            images = [images]
        if not isinstance(images, Tensor | np.ndarray) and images and all(isinstance(i, str | Path) for i in images):
            pixels = [self._framed(self._read(Path(image))) for image in images]
            if len({image.shape for image in pixels}) > 1:
                raise UserError("these images are of different sizes, and the model takes one size at a time.")
            images = torch.stack(pixels)
        else:
            images = self._framed_all(torch.as_tensor(images))
        device = next((tensor.device for tensor in self.student.state_dict().values()), torch.device("cpu"))
        return normalise(images.to(device), self.card.mean, self.card.std)

    def _framed_all(self, images: Tensor) -> Tensor:
        channels = len(self.card.mean)
        images = images[None] if images.ndim == 3 else images
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
            raise UserError(
                f"images must be uint8 pixels [n, {channels}, height, width], got "
                f"{str(images.dtype).removeprefix('torch.')} of shape {list(images.shape)}."
            )
        return images if self.card.frame is None else torch.stack([self._framed(image) for image in images])

    def _framed(self, image: Tensor) -> Tensor:
        if self.card.frame is None:
            return image
        height, width = self.card.frame
        where = letterbox(image.shape[1], image.shape[2], (height, width))
        return placed(image.cpu().numpy(), where, fill=[float(round(255 * value)) for value in self.card.mean])

    def _read(self, path: Path) -> Tensor:
        from l2t_ray.data.pictures import Picture, Reading, look_at, pixels_of, shown  # Pillow, for files alone

        picture = Picture(path, shown(path))
        if look_at(picture).kind != "8 bit":
            raise UserError(f"{picture.where} has more than 8 bits a channel; give its pixels, scaled to uint8.")
        reading = Reading("L" if len(self.card.mean) == 1 else "RGB")
        pixels, _ = pixels_of(picture, reading, self.card.resized)
        return torch.from_numpy(pixels.copy())


def write_model(path: Path, student: nn.Module, card: ModelCard) -> None:
    """
    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    from safetensors.torch import save

    # Clones, for a file has no place for tensors that share memory; what is no tensor cannot be kept.
    tensors = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in student.state_dict().items()
        if isinstance(value, Tensor)
    }
    text = json.dumps(asdict(card))
    header = {"format": FORMAT, "card": text, "sha256": _checksum(text, tensors)}
    with replaced(path) as temporary:
        temporary.write_bytes(save(tensors, header))


def load_model(
    path: str | Path,
    *,
    arm: str | None = None,
    student: MakeStudent | None = None,
    device: torch.device | str = "cpu",
) -> TrainedModel:
    """A trained model in evaluation mode, of a file or of a run.

    Args:
        path: a run's directory, or one of its `model*.safetensors`.
        arm: which of the run's methods; None: the one that is not a control.
        student: the function that makes the student, where it is one of your own (`student.name: package.module:make`):
            a file alone gets none of your code to run.

    Raises:
        UserError: if there is no such model, it is damaged, of a newer version, or of a student of your own that is not
            given.
    """
    path = Path(path)
    if path.is_dir():
        path = _of_arm(path, arm)
    card, tensors = _read(path)
    if arm is not None and card.arm != arm:
        raise UserError(f"{path} is the model of {card.arm}, not of {arm}; leave arm out, or give the run's directory.")
    module = _built(path, card, tensors, student)
    return TrainedModel(module, card).to(device).eval()


def _of_arm(directory: Path, arm: str | None) -> Path:
    plain = directory / MODEL
    if arm is None and plain.is_file():
        return plain
    arms = {_read(path)[0].arm: path for path in sorted(directory.glob(PATTERN))}
    if arm in arms:
        return arms[arm]
    if arms:
        which = "the method itself has none" if arm is None else f"there is none of arm {arm!r}"
        raise UserError(
            f"{directory} holds the models of {', '.join(sorted(arms))}, and {which}; give arm= one of them."
        )
    if (directory / "config.yaml").is_file():
        raise UserError(
            f"{directory} holds no trained model: the run is not finished, diverged, or is of an earlier version; "
            f"--resume {directory} goes on with it and writes one."
        )
    raise UserError(f"{directory} holds no trained model; give the directory of a run, or its {MODEL}.")


def _built(path: Path, card: ModelCard, tensors: Mapping[str, Tensor], student: MakeStudent | None) -> nn.Module:
    name, options = card.student.get("name"), {key: value for key, value in card.student.items() if key != "name"}
    is_own = is_import_path(name)
    if is_own and student is None:
        raise UserError(
            f"the student of {path} is code of your own, {name}, which a file may not run; give it: "
            f"load_model(..., student={str(name).rpartition(':')[2]})."
        )
    if not is_own and name not in STUDENTS:
        raise UserError(f"{path} is the model of a student {str(name)[:40]!r}, which is not known; update l2t_ray.")
    make = student if is_own else STUDENTS[str(name)]
    assert make is not None

    def build() -> nn.Module:
        return make(**takes(make, card.shape), **options)

    try:
        if not is_own:
            options = {
                key: value
                for key, value in student_record(str(name)).model_validate({"name": name, **options}).options().items()
            }
            with torch.device("meta"):  # sizes cost nothing there
                _fit(build(), tensors)
        module = seeded(build, 0)
        _fit(module, tensors)
    except Exception as error:  # a header may hold anything, and a student of one's own do
        reason = _line(error)
        raise UserError(
            f"{path} and its student {name} do not fit together: {reason}; take the file of a run."
        ) from None
    module.load_state_dict(tensors, strict=False)
    return module


def _fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = {name: value.shape for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    strange = sorted(own.keys() ^ tensors.keys()) or [name for name in own if own[name] != tensors[name].shape]
    if strange:
        raise ValueError(f"{len(strange)} of its tensors are others, such as {strange[0]}")


def _read(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"there is no trained model at {path}; give the directory of a run, or its {MODEL}.")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a model ({_line(error)}).") from None
    form = str(header.get("format"))
    if form != FORMAT:
        newer = "it is of another version; update l2t_ray" if form.startswith("l2t_ray.model/") else "give one of a run"
        raise UserError(f"{path} is not a trained model of the format {FORMAT!r}; {newer}.")
    text = header.get("card", "")
    if header.get("sha256") != _checksum(text, tensors):
        raise UserError(f"{path} is damaged: its checksum does not fit its content; copy it again.")
    try:
        return ModelCard(**json.loads(text)), tensors
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its header does not describe a model ({_line(error)}).") from None


def _checksum(card: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(f"{FORMAT}\n{card}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def card_of(
    dataset: Any, *, arm: str, task: str, student: Mapping[str, Any], resized: int | None, frame: Sequence[int] | None
) -> ModelCard:
    """The card of a model that was trained on an opened data set."""
    return ModelCard(
        arm,
        task,
        student,
        tuple(dataset.train.class_names),
        dataset.student_arguments.get("image_size"),
        tuple(dataset.mean),
        tuple(dataset.std),
        resized,
        frame,
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
