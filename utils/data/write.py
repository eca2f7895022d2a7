"""Write an image set, or a part of it, as folders of image files or as tensors."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from utils.data.folders import SUFFIXES, is_debris
from utils.data.images import (
    ImageRef,
    ImageSet,
    Member,
    Samples,
    decoding,
    load_image,
    read_image,
    soft_labels_of,
)
from utils.system.errors import InputError
from utils.system.files import why_unwritable
from utils.system.safe_load import save_archive

IMAGES, LABELS = "images_best.pt", "labels_best.pt"  # file names of the tensors, as in MTT


@contextmanager
def new_folder(path: Path, flag: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; if the `with` block ends without an error, rename it to `path`.

    Args:
        path: the folder to make.
        flag: command-line flag or argument that gave the path, for error messages.

    Raises:
        InputError: `path` exists, or the disk is full or cannot be written.
    """
    if os.path.lexists(path):
        raise InputError(f"{flag} {path} exists; delete it, or give another folder")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        temporary.chmod(0o755)  # folders of mkdtemp are readable only for their owner
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {why_unwritable(error)}; give another folder") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def class_folders(images: ImageSet) -> list[str]:
    """Return a folder name for each class of a set.

    If classes have only numbers, the numbers are padded with zeros, so that the folders sort in numerical order. In
    class names, `_` replaces characters that a folder name cannot contain. A name that would hide the folder gets the
    prefix `_`.

    Raises:
        InputError: two classes would get the same folder.
    """
    if not images.named:
        width = max(map(len, images.classes), default=1)
        return [name.zfill(width) for name in images.classes]
    names = [name.replace("/", "_").replace("\0", "_").strip() or "_" for name in images.classes]
    names = [f"_{name}" if is_debris(name) else name for name in names]
    if len(set(names)) < len(names):
        raise InputError(f"{images.root} has classes that get the same folder name; rename these classes")
    return names


def holds_tensors(images: ImageSet) -> bool:
    """Return whether a set must be written as tensors: its images are floating-point numbers, or it has soft labels."""
    image = images.samples[0][0]
    in_memory = isinstance(image, Member) and not image.container.holds_files
    return images.answers is not None or (in_memory and images.values != "bytes")


def image_file(image: ImageRef) -> tuple[bytes, str] | None:
    """Return (content, suffix) of an image's file; None if it is stored as pixels, or its format is not in SUFFIXES."""
    if not isinstance(image, Member):
        return read_image(image), Path(image).suffix
    if not image.container.holds_files:
        return None
    content = read_image(image)
    with decoding(image), Image.open(BytesIO(content)) as opened:
        kind = (opened.format or "").lower()
    return (content, f".{kind}") if f".{kind}" in SUFFIXES else None


def write_image(image: ImageRef, path: Path, channels: int, content: bytes | None = None) -> None:
    """Write an image to a file. The content of an image file is copied; other images become PNG files, without loss.

    Args:
        image: the image.
        path: the file to write.
        channels: 1 to write a grey PNG file, 3 for RGB.
        content: content of the image's file, if `name_files` has read it; None otherwise.

    Raises:
        InputError: the image cannot be decoded, or holds floating-point numbers.
    """
    if content is None and (stored := image_file(image)) is not None:
        content, _ = stored
    if content is not None:
        path.write_bytes(content)
        return
    loaded = load_image(image, channels)
    if isinstance(loaded, torch.Tensor):
        raise InputError(f"{image} holds floating-point numbers, which an image file of 8 bits cannot hold")
    loaded.save(path, "PNG")


def name_files(samples: Samples, classes: Sequence[str]) -> Iterator[tuple[str, ImageRef, bytes | None]]:
    """Choose a file name for each image of a set; yield (`CLASS/NAME`, image, content).

    The content is the bytes of the image's file if they had to be read to choose the suffix, else None. An image can be
    written before the next one is read.

    NAME is the name of the image file. For a member of a container, NAME is the image's index in `samples` and a
    suffix. If an earlier image has the same `CLASS/NAME`, the later one gets `CLASS/NUMBER-NAME`.

    Args:
        samples: (image, class) of the images.
        classes: folder name of each class.
    """
    taken: set[str] = set()
    for place, (image, target) in enumerate(samples):
        stored = image_file(image) if isinstance(image, Member) else None
        if isinstance(image, Member):
            name = f"{place:0{len(str(len(samples) - 1))}}{stored[1] if stored is not None else '.png'}"
        else:
            name = os.path.basename(image)
        file, number = f"{classes[target]}/{name}", len(taken)
        while file in taken:
            file, number = f"{classes[target]}/{number}-{name}", number + 1
        taken.add(file)
        yield file, image, None if stored is None else stored[0]


def write_tensors(folder: Path, samples: Samples, channels: int, answers: bool) -> None:
    """Write images and labels to two files of tensors in `folder`, without changing their values.

    Args:
        folder: the folder, which exists.
        samples: (image, class) of the images, which all have the same size.
        channels: number of channels to write, 1 or 3.
        answers: True to write the soft labels stored with the images, float32 [N, C]; False to write the classes,
            int64 [N].

    Raises:
        InputError: the images differ in size or type, or the disk is full.
    """
    loaded = []
    for image, _ in samples:
        one = load_image(image, channels)
        loaded.append(one if isinstance(one, torch.Tensor) else pil_to_tensor(one))
    if len({(one.shape, one.dtype) for one in loaded}) > 1:
        raise InputError(
            f"{samples[0][0]} and other images of its set differ in size or type, so that one tensor cannot hold them; "
            "resize them first"
        )
    soft = soft_labels_of(samples) if answers else None
    save_archive(folder / IMAGES, torch.stack(loaded))
    save_archive(folder / LABELS, torch.tensor([target for _, target in samples]) if soft is None else soft)
