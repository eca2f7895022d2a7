"""Check that stored labels are a given teacher's logits for given images.

The command is `python -m utils.labels verify PATH --images DIR --arch TEACHER`.
"""

from pathlib import Path
from typing import Any, cast

import torch

from utils.config import Findings, RelabelConfig, VerifyConfig, comparable, resolve_views
from utils.data.image_sets import open_images
from utils.data.images import Samples, Values
from utils.labels.formats import open_labels
from utils.labels.packed import PackedStore
from utils.labels.packed_manifest import epoch_name
from utils.labels.sre2l import WITHOUT_INDEX
from utils.labels.store import LabelStore
from utils.labels.views import index_of
from utils.run.label_checks import likely_size, stated_normalised
from utils.run.label_hypotheses import Explanation, explain
from utils.run.loading import inspect_pixels
from utils.run.teacher_inquiry import Inquiry, ReplaySettings, Verdict
from utils.system.errors import InputError
from utils.system.log import log
from utils.training.precision import Precision, pick_device
from utils.training.teachers import Ensemble, open_committee

ASK = "python -m utils.labels verify PATH --images DIR --arch TEACHER asks the teacher"


def run(config: VerifyConfig) -> bool:
    """Compare labels with the logits of the teacher that the flags name, and print the result.

    Returns:
        True if the labels were compared; False if neither --images nor a teacher is given.

    Raises:
        InputError: the labels are not the teacher's logits for the images, a flag is missing, or flags contradict the
            labels.
    """
    if not config.images:
        if config.arch or config.checkpoint or config.preset or config.bssl or config.ensemble_weights:
            raise InputError("--images is missing; give the folder of images that the labels are about")
        return False
    if not (config.arch or config.preset):
        raise InputError("--arch is missing; give the model whose answers the labels are")
    store = open_labels(config.path, config.fkd_seed)
    stated = stated_settings(store)
    images = open_images(config.images, "--images", normalised=stated_normalised(store) or "auto")
    chosen = config.teachers(stated)
    refuse_contradictions(config, stated)
    found = resolve_views(config, Findings(), stated, config.path, likely_size(store))
    found = inspect_pixels(found, [images], chosen.names, chosen.files)
    size, channels = found.input_size, found.channels
    precision = Precision(config.precision, pick_device(config.device))
    teachers = open_committee(chosen, precision, size, channels)
    teachers.refuse_small_batch(min(store.batch_size, store.num_images), size, "leave out --bssl, or give other labels")
    keep_stated_classes(teachers, stated.get("teacher_classes"), config.path, size)
    replay = ReplaySettings(size, found.mean, found.std, temperature=config.temperature)
    inquiry = Inquiry(store, images.samples, teachers, channels=channels, values=images.values)
    verdict = first_verdict(inquiry, replay, config.path, config.images)
    if config.verbose:
        print_batches(verdict)
    seed = None if states_index(store) else config.fkd_seed
    explanation = Explanation([], verdict) if verdict.tight else explain(inquiry, replay, verdict, seed)
    print(judgement(config.path, inquiry, explanation))
    return True


def stated_settings(store: LabelStore) -> dict[str, Any]:
    """Return the settings of relabel_FKD.py that the labels state, for example `input_size` and `mean`; may be {}."""
    return store.settings


def keep_stated_classes(teachers: Ensemble, numbers: Any, path: str, size: int) -> None:
    """Make the teachers return only the logits of the classes that relabelling with --classes kept.

    Args:
        teachers: the teachers.
        numbers: the teacher's numbers of the kept classes, as the labels state them; None if all classes were kept.
        path: folder of the labels, for error messages.
        size: side of the images in pixels.

    Raises:
        InputError: a number exceeds the teachers' classes, or `numbers` is no list of class numbers.
    """
    if numbers is None:
        return
    if not (isinstance(numbers, list) and numbers and all(type(one) is int and one >= 0 for one in numbers)):
        raise InputError(f"the labels in {path} do not state the teacher's class numbers; copy them again")
    classes = teachers.num_classes(size)
    if max(numbers) >= classes:
        raise InputError(
            f"the labels in {path} use class {max(numbers)} of their teacher, but the given teacher has only {classes} "
            "classes; give the teacher that made them"
        )
    teachers.keep_classes(numbers)


def refuse_contradictions(config: VerifyConfig, stated: dict[str, Any]) -> None:
    """Raise InputError if --input-size, --mean or --std contradicts the setting that the labels state."""
    for name in ("input_size", "mean", "std"):
        given, known = getattr(config, name), stated.get(name)
        if given is not None and known is not None and comparable(given) != comparable(known):
            numbers = known if isinstance(known, list) else [known]
            raise InputError(
                f"--{name.replace('_', '-')} contradicts the labels in {config.path}, which were made with "
                f"{' '.join(f'{number:g}' for number in numbers)}; leave it out"
            )


def states_index(store: LabelStore) -> bool:
    """Return whether the labels store the image number of each row. If not, --fkd-seed determines the image order."""
    return store.manifest["has_index"] if isinstance(store, PackedStore) else store.dialect not in WITHOUT_INDEX


def first_verdict(inquiry: Inquiry, replay: ReplaySettings, path: str | Path, folder: str) -> Verdict:
    """Compare stored logits with the teacher's logits under the assumed settings, and return the differences.

    Args:
        inquiry: labels, images and teacher.
        replay: the assumed settings.
        path: path of the labels, quoted in error messages.
        folder: folder of the images, quoted in error messages.

    Raises:
        InputError: the number of images in the folder does not fit the labels; the teacher and the labels have
            different numbers of classes; the teacher cannot process views of the assumed size; or cutmix boxes reach
            beyond the views.
    """
    store, images = inquiry.store, len(inquiry.samples)
    if images != store.num_images and (store.has_epochs or images < store.num_images):
        raise InputError(
            f"{folder} holds {images} images, but the labels in {path} refer to {store.num_images}; give the image "
            "set that they were made for"
        )
    try:
        classes = inquiry.teachers.num_classes(replay.size)
    except torch.cuda.OutOfMemoryError:  # lack of memory does not mean that the image size is wrong
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the teacher cannot answer views of {replay.size} px ({reason:.150}); give --input-size"
        ) from None
    if not store.num_classes_stated and classes >= store.num_classes:
        store.state_classes(classes)
    if classes != store.num_classes:
        raise InputError(
            f"the labels in {path} have {store.num_classes} classes and the teacher {classes}; give the teacher "
            "that made them"
        )
    reach = max((max(q.labels.mix.box) for q in inquiry.questions if q.labels.mix.box is not None), default=0)
    if reach > replay.size:
        raise InputError(
            f"--input-size {replay.size} is smaller than the views of the labels in {path}, whose cutmix boxes reach "
            f"pixel {reach}; give the --input-size of relabelling"
        )
    return inquiry.judge(replay)


def print_batches(verdict: Verdict) -> None:
    """Print, for each compared batch, the median and the maximum of `Verdict.own` over the rows."""
    for place in dict.fromkeys((epoch, batch) for epoch, batch, _ in verdict.places):
        rows = verdict.own[[n for n, (epoch, batch, _) in enumerate(verdict.places) if (epoch, batch) == place]]
        print(
            f"epoch {place[0]} batch {place[1]}: {len(rows)} rows, difference {rows.median().item():.3g} (median), "
            f"{rows.max().item():.3g} (worst row); another image makes {verdict.other:.3g}"
        )


def judgement(path: str | Path, inquiry: Inquiry, explanation: Explanation) -> str:
    """Return a sentence which says that the labels are the teacher's logits. It also states any doubt.

    Args:
        path: path of the labels, quoted in error messages.
        inquiry: labels, images and teacher.
        explanation: result of the comparison.

    Raises:
        InputError: the labels are not the teacher's logits. The message names the likely reason.
    """
    verdict, many = explanation.verdict, len(inquiry.teachers.teachers) > 1
    whose = "these teachers'" if many else "this teacher's"
    values = f"values from {verdict.low:.1f} to {verdict.high:.1f}"
    if not explanation.harmless:
        lead = f"{path}: these labels are not {whose} answers to these images"
        if not explanation.hypotheses:
            raise InputError(
                f"{lead} (typical difference {verdict.typical:.2g}, {values}): {reason(inquiry, explanation)}"
            )
        how = " and ".join(hypothesis.words for hypothesis in explanation.hypotheses)
        raise InputError(
            f"{lead} as they are read now, but they fit {how} (then the largest difference is "
            f"{verdict.largest:.2g}, {values}); "
            + ", and ".join(hypothesis.remedy for hypothesis in explanation.hypotheses if hypothesis.remedy)
        )
    how = "".join(f", {hypothesis.words}," for hypothesis in explanation.hypotheses).removesuffix(",")
    sentence = f"these labels are {whose} answers to these images{how}: largest difference {verdict.largest:.2g}"
    if verdict.blind:
        return (
            f"{sentence} ({values}), but its answers to other images of the class are as close, so this check cannot "
            "tell"
        )
    if not verdict.tight:
        return (
            f"{sentence} ({values}), {verdict.typical / verdict.other:.0%} of that of another image, more than "
            "rounding explains: the views were made in a slightly different way, or the weights are slightly different"
        )
    return f"{sentence} ({values})"


def reason(inquiry: Inquiry, explanation: Explanation) -> str:
    """Return the likely reason why labels do not fit the teacher under any of the tried settings.

    The returned text is the end of an error message.
    """
    if explanation.pairs:
        return ", and ".join(explanation.pairs)
    verdict = explanation.verdict
    wrong = verdict.misfits.nonzero()[:, 0].tolist()
    if len(wrong) > len(verdict.own) / 2:
        return (
            "no other image order, class order, input size or normalisation that was tried makes them fit; they are "
            "another teacher's, or about other images, so ask another --arch or give other --images"
        )
    epoch, batch, row = verdict.places[int(verdict.own.argmax())]
    question = next(one for one in inquiry.questions if (one.epoch, one.batch) == (epoch, batch))
    image = inquiry.name(int(index_of(question.labels)[row]))
    mixed = " and its partner" if question.labels.mix.partner is not None else ""
    return (
        f"{len(wrong)} of {len(verdict.own)} rows do not fit, row {row} of batch {batch} in epoch {epoch} least (image "
        f"{image}{mixed}); some images have changed, so restore them"
    )


def check_answers(inquiry: Inquiry, replay: ReplaySettings, path: str | Path, folder: str) -> str:
    """Check that labels are a teacher's logits. Only the given replay settings are tried.

    Args:
        inquiry: labels, images and teacher.
        replay: how views are replayed.
        path: path of the labels, quoted in error messages.
        folder: folder of the images, quoted in error messages.

    Returns:
        the sentence from `judgement`.

    Raises:
        InputError: the labels are not the teacher's logits.
    """
    return judgement(path, inquiry, Explanation([], first_verdict(inquiry, replay, path, folder)))


def check_started(config: RelabelConfig, found: Findings, samples: Samples, teachers: Ensemble) -> None:
    """Check that the teachers of a resumed relabelling still give the stored logits for the first stored batch.

    If the weights, the images or the arithmetic of PyTorch have changed, the new labels would not match the stored
    ones. If epoch 0 is not stored, the check is skipped, and the log says so.

    Args:
        config: flags of relabel_FKD.py.
        found: settings that relabel_FKD.py derived before labelling, for example `input_size`.
        samples: (path, class) of each image.
        teachers: the teachers that will label the remaining batches.

    Raises:
        InputError: the teachers' logits differ from the stored logits.
    """
    # several processes may share the epochs, so other epochs may be stored before epoch 0
    if not Path(config.fkd_path, epoch_name(0)).exists():
        log.info("labels  not checked: whether the epochs in %s are these teachers' answers", config.fkd_path)
        return
    store = open_labels(config.fkd_path, config.fkd_seed)
    inquiry = Inquiry(store, samples, teachers, [(0, 0)], found.channels, cast(Values, found.train_values))
    try:
        said = check_answers(
            inquiry, ReplaySettings(found.input_size, found.mean, found.std), config.fkd_path, config.data
        )
    except InputError as error:
        raise InputError(
            f"the labels that are in {config.fkd_path} already cannot be continued with these teachers and images "
            f"({error}); use those of the start, or another folder"
        ) from None
    log.info("labels  the first batch in %s was compared again: %s", config.fkd_path, said)


def unchecked(store: LabelStore) -> list[str]:
    """Return log lines about properties of the labels that cannot be checked without a teacher.

    There is one line for each unchecked property: the images, their order, the size and normalisation of views, and the
    order of classes.
    """
    said = []
    if store.image_digests is None:
        said.append("whether these are the answers to these images (the labels hold no digests of images); " + ASK)
    if not states_index(store):
        seed = store.fkd_seed
        said.append(f"the order of images (the labels have no index, so it is that of --fkd-seed {seed})")
    settings = store.settings
    if "input_size" not in settings or "mean" not in settings:
        said.append("size and normalisation of the teacher's views (the labels do not state both)")
    if store.class_list is None and store.class_names is None:
        said.append("the order of classes (the labels do not name them)")
    return [f"labels  not checked: {sentence}" for sentence in said]
