"""`manifest.json` of packed labels: their description, their teachers, the digest of every file."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import LABEL_ORDERS
from utils.labels.digests import NAMES
from utils.labels.packed_codec import Codec
from utils.labels.packed_tensors import Shape
from utils.labels.store import STORED
from utils.labels.views import ViewPolicy
from utils.system.errors import InputError, listing
from utils.system.files import digest_of_text

FORMAT, VERSION = "fkd-packed", 4
OLDEST = 2  # the oldest version that is read
CONTINUED = 3  # the oldest version that a writer resumes; its epoch files have the present layout


MAX_MANIFEST_BYTES = 64 * 2**20


# Entries that older manifests lack, with the values that apply to such manifests.
KIND = {
    "answers": "logits",  # or probabilities
    "label_order": STORED,  # order in which the project that made the labels visits batches
    "batches": None,  # number of batches of a pool (labels without epochs), all full and with an index
    "num_classes_stated": True,  # if False, num_classes is only one more than the highest class kept
}


MANIFEST = "manifest.json"


EPOCH_FILE = re.compile(r"epoch_(\d{4,})\.safetensors")


def digest_of_names(names: Sequence[str]) -> str:
    """Return the digest of class folder names in order."""
    return digest_of_text("\n".join(names))


def digest_of_draws(policy: ViewPolicy) -> str:
    """Return a digest of sample draws of a policy, which reveals a numpy version that draws other views."""
    partner, lam, mix_box = policy.draw_mix(1, 2, 16)
    crops = policy.crops(policy.draw_crops(1, 2, 16), np.array([[97, 131]] * 16)).tolist()
    boxes = [((top, left, height, width), bool(flip)) for top, left, height, width, flip in crops]
    drawn = [boxes, None if partner is None else partner.tolist(), lam, mix_box]
    return digest_of_text(repr(drawn))


def make_manifest(
    codec: Codec,
    num_images: int,
    num_classes: int,
    batch_size: int,
    epochs: int,
    mix_type: str,
    has_index: bool,
    settings: dict[str, Any],
    policy: ViewPolicy | None = None,
    has_rest: bool = True,
    **kind: Any,
) -> dict[str, Any]:
    """Return the manifest of a new store; `settings` states the teachers, and how the labels were made.

    `has_rest` states whether mean and variance of the logits beyond the k largest are stored. `kind` overrides values
    of KIND. The writer sets `has_image_digests`.
    """
    drawn = codec.views == "drawn"
    return {
        "format": FORMAT,
        "version": VERSION,
        "num_images": num_images,
        "num_classes": num_classes,
        "batch_size": batch_size,
        "epochs": epochs,
        "mix_type": mix_type,
        "has_index": has_index,
        "has_rest": has_rest,
        "has_image_digests": False,
        **KIND,
        **kind,
        "codec": asdict(codec),
        "policy": asdict(policy) if policy else None,
        "draws": digest_of_draws(policy) if drawn and policy else None,
        "settings": settings,
        "digests": {},
    }


def kind_of(manifest: dict) -> dict:
    """Return the entries of a manifest that KIND names, with the values of KIND for missing ones."""
    return {name: manifest.get(name, usual) for name, usual in KIND.items()}


def batches_per_epoch(manifest: dict) -> int:
    """Return the number of batches of an epoch file; the last file of a pool (labels without epochs) may hold fewer."""
    images, size, pooled = manifest["num_images"], manifest["batch_size"], manifest.get("batches")
    return -(-images // size) if pooled is None else max(1, min(images // size, pooled))


def rows_of(manifest: dict, epoch: int) -> int:
    """Return the number of rows of an epoch file: one per image, or in a pool the rows of the file's full batches."""
    per_epoch, pooled = batches_per_epoch(manifest), manifest.get("batches")
    if pooled is None:
        return manifest["num_images"]
    return max(0, min(per_epoch, pooled - epoch * per_epoch)) * manifest["batch_size"]


def shape_of(manifest: dict, epoch: int = 0) -> Shape:
    """Return the `Shape` of the tensors of an epoch file."""
    codec, classes = manifest["codec"], manifest["num_classes"]
    return Shape(
        rows=rows_of(manifest, epoch),
        images=manifest["num_images"],
        classes=classes,
        kept=min(codec["keep_topk"] or classes, classes),
        batch_size=manifest["batch_size"],
        bits=codec["bits"],
        mix_type=manifest["mix_type"],
        has_views=codec["views"] == "stored",
        has_index=manifest["has_index"],
        has_rest=manifest.get("has_rest", True),
        version=manifest["version"],
    )


def epoch_name(epoch: int) -> str:
    """Return the file name of an epoch."""
    return f"epoch_{epoch:04d}.safetensors"


def images_tensors(manifest: dict) -> set[str]:
    """Return the names of the tensors in images.safetensors; none if there is no such file."""
    drawn = manifest["codec"]["views"] == "drawn"
    return ({"sizes"} if drawn else set()) | (set(NAMES) if manifest.get("has_image_digests") else set())


def refuse_differences(path: str | Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError, which names all differing settings, if two manifests differ in more than digests.

    Settings that an older version did not state are ignored.
    """
    own = {"digests", "has_image_digests"}  # left to the writer
    older = CONTINUED <= stored["version"] < wanted["version"]
    if older:
        own.add("version")

    def flat(manifest: dict[str, Any]) -> dict[str, Any]:
        plain = json.loads(json.dumps({key: value for key, value in manifest.items() if key not in own}))
        nested = {key: value for key, value in plain.items() if isinstance(value, dict)}
        return {k: v for k, v in plain.items() if k not in nested} | {
            name: value for part in nested.values() for name, value in part.items()
        }

    old, new = flat(stored), flat(wanted)
    compared = [key for key in new if key in old or not older]
    differences = [
        f"{key} is {in_words(key, old.get(key))}, not {in_words(key, new.get(key))}"
        for key in compared
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise InputError(
            f"{path} holds labels made with other settings: {'; '.join(differences)}; use the same, or another folder"
        )


def in_words(key: str, value: Any) -> str:
    """Return the value of a setting as text for an error message: teachers by name, long lists shortened."""
    if key == "teachers":
        return teachers_in_words(value)
    return f"[{listing(value)}]" if isinstance(value, list) and len(value) > 5 else str(value)


def teachers_in_words(teachers: Any) -> str:
    """Return the teachers of labels as text: `resnet18 (IMAGENET1K_V1) + alexnet (digest of its file)`.

    Older stores state `pretrained` for the weights that were the library's newest at that time.
    """
    try:
        weights = {"pretrained": "pretrained, without a name"}
        return " + ".join(f"{one['arch']} ({weights.get(one['weights'], one['weights'])})" for one in teachers)
    except (TypeError, KeyError):  # damaged, or written by another program
        return str(teachers)


def kind_is_sound(manifest: dict) -> bool:
    """Return whether the values of KIND in a manifest are possible."""
    kind = kind_of(manifest)
    batches, pooled = kind["batches"], kind["batches"] is not None
    return (
        kind["answers"] in ("logits", "probabilities")
        and kind["label_order"] in LABEL_ORDERS
        and isinstance(kind["num_classes_stated"], bool)
        and (not pooled or (type(batches) is int and 0 < batches < 2**31 and manifest.get("has_index") is True))
        and (not pooled or manifest["epochs"] == -(-batches // batches_per_epoch(manifest)))
    )


def classes_are_sound(classes: Any) -> bool:
    """Return whether `classes`, the class folders in the settings, is a list of names or None."""
    return classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read and check manifest.json.

    Raises:
        InputError: the file is unreadable, of another format or an unknown version, or states impossible figures.
    """
    file = Path(path) / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("it is absurdly long")
        manifest = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the labels again") from None
    known = range(OLDEST, VERSION + 1)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") not in known:
        raise InputError(
            f"{file} is not a {FORMAT} manifest of version {OLDEST} to {VERSION}; make the labels again, or use the "
            "release that made them"
        )
    counts = [manifest.get(key) for key in ("num_images", "num_classes", "batch_size", "epochs")]
    codec, digests = manifest.get("codec"), manifest.get("digests")
    sound = (
        all(type(n) is int and 0 < n < 2**31 for n in counts)
        and manifest.get("mix_type") in ("cutmix", "mixup", "none")
        and isinstance(manifest.get("has_index"), bool)
        and isinstance(manifest.get("has_rest", True), bool)
        and (type(manifest.get("has_image_digests")) is bool) == (manifest["version"] >= 4)
        and kind_is_sound(manifest)
        and isinstance(digests, dict)
        and all(EPOCH_FILE.fullmatch(name) and isinstance(digest, str) for name, digest in digests.items())
        and isinstance(codec, dict)
        and codec.keys() == asdict(Codec()).keys()
        and codec["bits"] in (4, 8, 16, 32)
        and (codec["keep_topk"] is None or codec["keep_topk"] in range(1, manifest["num_classes"] + 1))
        and codec["views"] in ("stored", "drawn")
        and isinstance(manifest.get("settings"), dict)
        and classes_are_sound(manifest["settings"].get("classes"))
        and isinstance(manifest.get("policy", ...), dict if codec["views"] == "drawn" else dict | None)
    )
    if not sound:
        raise InputError(f"{file} states impossible figures; copy the labels again")
    return manifest
