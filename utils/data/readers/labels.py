"""Build an image set from a list that gives the class of each image, as a number or a name."""

from collections.abc import Sequence

from utils.data.images import Container, ImageSet, Member, Samples, channels_of_files
from utils.system.errors import InputError, shorten

MOST_CLASSES = 100_000  # class numbers must be lower; ImageNet-21K has 21,841 classes


def classes_of_labels(
    labels: Sequence[int | str], path: str, names: Sequence[str] | None = None
) -> tuple[list[str], list[int], bool]:
    """Return the classes of a set, and the class of each image.

    Args:
        labels: class of each image: either all are numbers, or all are names.
        path: the set, for error messages.
        names: name of each class, if the set lists them.

    Returns:
        (classes, index of each image's class in `classes`, whether the classes have names). Class names are sorted if
        `names` is None.

    Raises:
        InputError: a number is negative, too large, or not one of `names`; or some labels are numbers, others names.
    """
    texts = {label for label in labels if isinstance(label, str)}
    if texts:
        if not all(isinstance(label, str) for label in labels):
            raise InputError(f"{path} gives some classes as numbers and some as names; write all of them in one way")
        if names is not None and not texts <= set(names):
            raise InputError(f"{path} has the class {shorten(min(texts - set(names)), 60)}, which its list lacks")
        classes = sorted(texts) if names is None else list(names)
        index = {name: number for number, name in enumerate(classes)}
        return classes, [index[label] for label in labels if isinstance(label, str)], True
    numbers = [label for label in labels if isinstance(label, int)]
    most = MOST_CLASSES if names is None else len(names)
    wrong = next((number for number in numbers if not 0 <= number < most), None)
    if wrong is not None:
        raise InputError(
            f"{path} has the class {shorten(wrong, 25)}, not one from 0 to {most - 1}; number the classes from 0 on"
        )
    if names is not None:
        return list(names), numbers, True
    return [str(number) for number in range(max(numbers) + 1)], numbers, False


def labelled_set(
    container: Container, labels: Sequence[int | str], layout: str, names: Sequence[str] | None = None
) -> ImageSet:
    """Return the set of all images in a container of image files.

    Args:
        container: the images; its `path` is the root of the set.
        labels: class of each image, see `classes_of_labels`.
        layout: description of the layout, for the log.
        names: name of each class, if the set lists them.

    Raises:
        InputError: the labels are not valid, see `classes_of_labels`.
    """
    classes, targets, named = classes_of_labels(labels, container.path, names)
    samples: Samples = [(Member(container, number), target) for number, target in enumerate(targets)]
    return ImageSet(container.path, classes, samples, named, channels_of_files(samples), layout=layout)
