"""Which classes look alike: the "inherently similar classes" that the paper's wording of its noise speaks of.

(The published protocol, `noise.flip_to_two`, draws its classes at random in spite of that wording.)
"""

import numpy as np
from jaxtyping import Int

_CIFAR10 = (  # by class, the two that annotators most often took it for: CIFAR-10N's `worst` labels, Wei et al. 2022
    (8, 2),  # airplane: ship, bird
    (9, 0),  # automobile: truck, airplane
    (4, 0),  # bird: deer, airplane
    (5, 2),  # cat: dog, bird
    (7, 5),  # deer: horse, dog
    (3, 2),  # dog: cat, bird
    (2, 3),  # frog: bird, cat
    (5, 4),  # horse: dog, deer
    (0, 1),  # ship: airplane, automobile
    (1, 0),  # truck: automobile, airplane
)

CIFAR100_SUPERCLASSES = (  # by fine class, as the set's own coarse labels have it
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


def similar_classes(name: str) -> Int[np.ndarray, "c 2"] | None:
    """The two classes most like each class of an image set; None where no such map is known.

    CIFAR-100: the next two of the five classes of the same superclass, going round.
    """
    if name == "cifar10":
        return np.array(_CIFAR10)
    if name != "cifar100":
        return None
    superclasses = np.array(CIFAR100_SUPERCLASSES)
    pairs = np.empty((100, 2), dtype=np.int64)
    for label, superclass in enumerate(superclasses):
        family = np.flatnonzero(superclasses == superclass)
        place = int(np.searchsorted(family, label))
        pairs[label] = family[(place + 1) % 5], family[(place + 2) % 5]
    return pairs
