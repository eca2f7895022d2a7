"""Make, read and check `manifest.json`, which describes packed labels and lists the digest of every epoch file."""

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
from utils.labels.store import HELD, STORED
from utils.labels.views import ViewPolicy
from utils.system.errors import InputError, listing
from utils.system.files import digest_of_text

FORMAT, VERSION = "fkd-packed", 4
OLDEST = 2  # the oldest version of the packed format that can be read
CONTINUED = 3  # the oldest version that a writer can resume: its epoch files have the present layout


MAX_MANIFEST_BYTES = 64 * 2**20


# Entries that older manifests lack, and the values that are assumed if they are missing.
KIND = {
    "answers": "logits",  # kind of the stored values: "logits" or "probabilities"
    "label_order": STORED,  # default order of the batches in training, see `LabelStore`
    # number of stored batches of LPLD and LPQLD labels; None for all other labels, which are grouped into epochs
    "batches": None,
    # False if the number of classes is unknown; num_classes is then only a lower bound
    "num_classes_stated": True,
}


MANIFEST = "manifest.json"


EPOCH_FILE = re.compile(r"epoch_(\d{4,})\.safetensors")


def digest_of_names(names: Sequence[str]) -> str:
    """Return a digest of the names of the class folders, which changes if the order of the names changes."""
    return digest_of_text("\n".join(names))


def digest_of_draws(policy: ViewPolicy) -> str:
    """Return a digest of sample views that are drawn from `policy`.

    If the digest differs from the digest in a manifest, the installed version of numpy cannot redraw the labels' views.
    """
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
    """Return the manifest of new packed labels, which lists no epoch files yet.

    Args:
        codec: the encoding of the labels.
        num_images, num_classes, batch_size, epochs, mix_type: see `LabelStore`.
        has_index: whether the labels state image numbers.
        settings: names of the teachers, and other settings with which the labels were made.
        policy: distribution of the views; None if unknown, as for labels of other projects.
        has_rest: for top-k labels, whether mean and variance of the dropped logits are stored.
        kind: entries that replace the default values in KIND, and entries of HELD that are true.
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
    """Return the value of each entry named in KIND: the manifest's, or KIND's if the manifest lacks the entry."""
    return {name: manifest.get(name, usual) for name, usual in KIND.items()}


def batches_per_epoch(manifest: dict) -> int:
    """Return the number of batches in an epoch file.

    Labels of LPLD and LPQLD are one long list of batches, cut into epoch files. The last file may hold fewer batches.
    """
    images, size, pooled = manifest["num_images"], manifest["batch_size"], manifest.get("batches")
    return -(-images // size) if pooled is None else max(1, min(images // size, pooled))


def rows_of(manifest: dict, epoch: int) -> int:
    """Return the number of rows in the file of an epoch.

    This is the number of images. For labels of LPLD and LPQLD, it is the number of batches in the file times the batch
    size.
    """
    per_epoch, pooled = batches_per_epoch(manifest), manifest.get("batches")
    if pooled is None:
        return manifest["num_images"]
    return max(0, min(per_epoch, pooled - epoch * per_epoch)) * manifest["batch_size"]


def shape_of(manifest: dict, epoch: int = 0) -> Shape:
    """Return the `Shape` of an epoch file, from which the shapes and dtypes of its tensors follow."""
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
        **{name: manifest.get(name, False) for name in HELD},
    )


def epoch_name(epoch: int) -> str:
    """Return the file name of an epoch."""
    return f"epoch_{epoch:04d}.safetensors"


def images_tensors(manifest: dict) -> set[str]:
    """Return the names of the tensors in images.safetensors; empty if the labels need no such file."""
    drawn = manifest["codec"]["views"] == "drawn"
    return ({"sizes"} if drawn else set()) | (set(NAMES) if manifest.get("has_image_digests") else set())


def refuse_differences(path: str | Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError if two manifests differ in a setting; the message names all settings that differ.

    Digests are not compared. If the stored manifest has an older version, its missing settings are not compared either.
    """
    own = {"digests", "has_image_digests"}  # not compared: these entries change as epochs are written
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
    # a setting such as `bssl` is stored only if it is used, so the stored manifest may have more settings
    extra = [] if older else [key for key in old if key not in new and key != "labels_accepted"]
    compared = [*(key for key in new if key in old or not older), *extra]
    differences = [
        f"{key} is {in_words(key, old.get(key))}, not {in_words(key, new.get(key))}"
        for key in compared
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise InputError(
            f"{path} holds labels made with other settings: {listing(differences, separator='; ')}; use the same, or "
            "another folder"
        )


def in_words(key: str, value: Any) -> str:
    """Return the value of a setting as text for an error message. Teachers are named, and long lists are shortened."""
    if key == "teachers":
        return teachers_in_words(value)
    return f"[{listing(value)}]" if isinstance(value, list) and len(value) > 5 else str(value)


def teachers_in_words(teachers: Any) -> str:
    """Return teachers and their weights as text, for example `resnet18 (IMAGENET1K_V1) + alexnet (DIGEST)`.

    DIGEST is the digest of a checkpoint file. For a function in a file, the digest of that file follows. In old
    manifests, `pretrained` stands for the weights that were the newest in the teacher's library at that time.
    """
    try:
        weights = {"pretrained": "pretrained, without a name"}
        return " + ".join(
            f"{one['arch']} ({weights.get(one['weights'], one['weights'])}"
            + (f", model file {one['model_file']})" if "model_file" in one else ")")
            for one in teachers
        )
    except (TypeError, KeyError):  # the manifest is damaged, or was written by another program
        return str(teachers)


def kind_is_sound(manifest: dict) -> bool:
    """Return whether a manifest has valid values for all entries in KIND and HELD."""
    kind = kind_of(manifest)
    batches, pooled = kind["batches"], kind["batches"] is not None
    return (
        kind["answers"] in ("logits", "probabilities")
        and kind["label_order"] in LABEL_ORDERS
        and isinstance(kind["num_classes_stated"], bool)
        and all(type(manifest.get(name, False)) is bool for name in HELD)
        and not (manifest["codec"]["views"] == "drawn" and any(manifest.get(name) for name in HELD))
        and (not pooled or (type(batches) is int and 0 < batches < 2**31 and manifest.get("has_index") is True))
        and (not pooled or manifest["epochs"] == -(-batches // batches_per_epoch(manifest)))
    )


def classes_are_sound(classes: Any) -> bool:
    """Return whether `classes`, the setting that names the class folders, is None or a list of strings."""
    return classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read and check the manifest.json in the folder `path`, and return its content.

    Raises:
        InputError: the file cannot be read, is not a manifest of a known version, or has invalid values.
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
        and isinstance(digests, dict)
        and all(EPOCH_FILE.fullmatch(name) and isinstance(digest, str) for name, digest in digests.items())
        and isinstance(codec, dict)
        and codec.keys() == asdict(Codec()).keys()
        and codec["bits"] in (4, 8, 16, 32)
        and (codec["keep_topk"] is None or codec["keep_topk"] in range(1, manifest["num_classes"] + 1))
        and codec["views"] in ("stored", "drawn")
        and kind_is_sound(manifest)
        and isinstance(manifest.get("settings"), dict)
        and classes_are_sound(manifest["settings"].get("classes"))
        and isinstance(manifest.get("policy", ...), dict if codec["views"] == "drawn" else dict | None)
    )
    if not sound:
        raise InputError(f"{file} states impossible figures; copy the labels again")
    return manifest
