# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""Train a student from scratch on distilled images and stored FKD soft labels; report its top-1.

Smoke test on the demo's data (`make demo` writes it):

    python train_FKD_parallel.py --train-dir demo/work/distilled --val-dir demo/work/val \
        --fkd-path demo/work/labels --input-size 32 --batch-size 50 --epochs 5 --output-dir save/smoke

The settings of the launch scripts (train_FKD_10_*.sh) for ImageNet-1K at 10 images per class:

    python train_FKD_parallel.py --train-dir DISTILLED --val-dir IMAGENET/val --fkd-path LABELS \
        --batch-size 50 --gradient-accumulation-steps 2 --cos --loss-type mse_gt --ce-weight 0.1 -T 20

The labels determine how each image was cropped, flipped and mixed when the teacher saw it. The student trains on the
same augmented images, so no teacher runs here. The reported result is the last epoch's top-1. README.md describes the
files that a run writes to --output-dir and the numbers in them.

Shapes: B images in a batch, b of them in a micro-batch, C classes, S x S pixels.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from utils.config import Findings, FKDConfig, TrainConfig
from utils.system.process import StopSignals, check_command_line, run_script

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below, which take seconds
    check_command_line(FKDConfig.parse)

import torch
import torch.nn.functional as F

from utils.data.augment import ColouredCutout
from utils.data.batch import Batch
from utils.data.preview import Preview
from utils.data.replay import Normalise
from utils.data.validation import ValidationBatches
from utils.data.workers import ViewDataset
from utils.labels.store import LabelStore
from utils.run import preflight
from utils.run.folder import VIEWS, RunFolder, open_folders
from utils.run.label_checks import check_labels, hard_views, refuse_other_pixels, soft_epochs, stated_classes
from utils.run.loading import (
    TrainingBatches,
    TrainingData,
    build_batches,
    build_validation,
    inspect_pixels,
    normalise_for,
    plan_memory,
)
from utils.run.progress_line import ProgressLine
from utils.run.student import Student
from utils.run.summary import describe_images
from utils.system.distributed import World
from utils.system.errors import InputError, Interrupted, listing
from utils.system.files import folder_bytes
from utils.system.log import log
from utils.training.data_parallel import all_rows, gather_micro_batch, sum_gradients
from utils.training.metrics import Metrics, MetricSums
from utils.training.precision import Precision
from utils.training.streams import Streams


def main(argv: Sequence[str] | None = None) -> None:
    """Check settings, labels and images; train the students; report their top-1."""
    config = FKDConfig.parse(argv)
    world, precision, found = preflight.begin(config)

    # All checks run before the training, which takes hours. `config` stays unchanged: each check adds the settings that
    # it derives from labels, folders and the machine to `found`.
    folders = open_folders(config, world)
    train_set, val_set = preflight.check_folders(config)
    views, found = check_labels(config, found, train_set)
    found = inspect_pixels(found, [train_set, val_set], config.models)
    store = views.store
    refuse_other_pixels(config, found, store)
    # a class must have the same number in the labels, the training set and the validation set
    classes = stated_classes(store)
    views, found = preflight.slice_labels(config, found, views, train_set, classes)
    num_classes = views.num_classes
    names, found = preflight.number_classes(config, found, train_set, val_set, num_classes, classes)
    # the training images must be the images that the teacher labelled
    images, found = preflight.identify_images(
        config, found, train_set.samples, store.image_digests, world, config.verify_labels
    )
    found = preflight.record_images(config, found, train_set.samples, val_set.samples)
    hard = hard_views(config, found, train_set.samples, num_classes)
    found = preflight.report_labels(config, found, train_set, val_set, views, names)
    # views of labels for ImageNet-21K have a coloured cutout
    cut_out = ColouredCutout(found.mean, found.std, precision.device) if store.has_cutouts else None
    data = TrainingData(train_set.samples, val_set.samples, views, num_classes, names, images, hard, augment=cut_out)

    students = build_students(config, found, data, folders, precision, world)
    plan = plan_memory(config, found, data, students, world)
    if config.dry_run:
        dataset = ViewDataset(data.train, views, found.input_size, found.channels)
        normalise = normalise_for(found, precision, augment=cut_out)
        apart = f", without {config.hard_epochs} hard epochs" if config.hard_epochs else ""
        labels = Path(config.fkd_path or "").name + apart
        draw_views(config, names, world, dataset, soft_epochs(config), normalise, labels)
        return

    described = describe(config, data, labels_of(config, found, store)) if world.is_main else {}
    with session(students, world) as signals:
        batches = build_batches(config, found, data, plan, students, world)
        validation = build_validation(found, data, plan, students, world)
        train(config, students, batches, validation, world, signals, views.file)
        report(students, world, described)


def build_students(
    config: TrainConfig,
    found: Findings,
    data: TrainingData,
    folders: Sequence[RunFolder],
    precision: Precision,
    world: World,
) -> list[Student]:
    """Build all students, each from scratch or from its checkpoint; check that they can train and save checkpoints."""
    students = [
        Student(alone, found, data.num_classes, folder, precision.device, world, data.images)
        for alone, folder in zip(config.students(), folders, strict=True)
    ]
    preflight.check_students(config, found, data, students, world)
    return students


def draw_views(
    config: TrainConfig,
    names: list[str],
    world: World,
    dataset: ViewDataset,
    epochs: range,
    normalise: Normalise,
    labels: str,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Finish a dry run: write a picture of augmented images that students would train on.

    Args:
        config: settings; the picture is written to --output-dir.
        names: name of each class.
        world: processes of the run; only rank 0 writes.
        dataset, epochs, normalise, teacher: see `Preview`.
        labels: name of the labels, for the title of the picture.
    """
    path = Path(config.output_dir, VIEWS)
    if world.is_main:
        Preview(dataset, epochs, normalise, teacher).draw(path, names, Path(config.train_dir).name, labels)
    log.info("dry run: everything is in place, nothing was trained; look at %s", path)


@contextlib.contextmanager
def session(students: Sequence[Student], world: World) -> Iterator[StopSignals]:
    """Lock the students' output folders, log to W&B and catch stop signals until the `with` block ends.

    Yields:
        the `StopSignals`, which record a signal (such as SIGTERM) instead of ending the process.
    """
    # wait until all ranks have read the files of an earlier run, because rank 0 now changes these files
    world.barrier()
    with StopSignals(world.all_reduce_max, alone=world.size == 1) as signals, contextlib.ExitStack() as sessions:
        for student in students:
            sessions.enter_context(student.session())
        yield signals


def train(
    config: TrainConfig,
    students: Sequence[Student],
    batches: TrainingBatches,
    validation: ValidationBatches,
    world: World,
    signals: StopSignals,
    label_file: Callable | None = None,
) -> None:
    """Train all students for the remaining epochs; evaluate after the epochs of `TrainConfig.evaluates`.

    All students train on the same batches. Each student gets the same result as if it were alone. If a student fails,
    the others continue.

    Args:
        config: settings of all students.
        students: students to train, new or resumed.
        batches: this rank's rows of every training batch.
        validation: this rank's batches (images, classes) of the validation set.
        world: processes of the run.
        signals: records signals that ask the run to stop.
        label_file: function (epoch, batch) -> path of the batch's label file, for error messages. `epoch` counts only
            epochs with soft labels, from 0.

    Raises:
        Interrupted: a signal asked the run to stop. The checkpoints are saved.
    """
    streams = Streams(students[0].precision.device, several=len(students) > 1)
    # a student's position is its next (epoch, batch). Students may resume at different positions; start at the earliest
    first_epoch, first_batch = min(student.position for student in students)
    epochs = range(first_epoch, config.epochs)
    with contextlib.closing(ProgressLine(config.epochs, not config.no_progress and world.is_main)) as line:
        # the progress line counts only batches that are still to be trained, not those from before a restart
        line.start(batches.steps(epochs) - first_batch)
        for epoch in epochs:
            if all(student.failed for student in students):
                break

            # train the students that are at this epoch; those with a later checkpoint wait for the others
            learning = [student for student in students if student.position[0] == epoch and not student.failed]
            for student in learning:
                student.start_epoch(epoch)  # sets learning rate, loss, micro-batch size and metric sums
            started = time.time()
            # `until_stop` ends the loop early after a signal
            remaining = line.training(epoch, signals.until_stop(batches.epoch(epoch, first_batch)))
            for number, batch in enumerate(remaining, start=first_batch):
                # if there are several students, crop, resize and mix the images only once, for all of them
                batch = streams.share(batch)
                for student in learning:
                    if number < student.progress.batch:  # before a restart, this student trained on the batch already
                        continue
                    with streams.stream_of(student):
                        with student.random:  # makes dropout masks independent of the other students
                            if student.graph is None:
                                train_step(student, batch)
                            else:
                                # runs train_step as a CUDA graph, which the first call captures
                                student.graph(train_step, student, batch)
                        if student.average is not None:
                            student.average.update()  # EMA of the weights
                        student.sums.end_batch()  # records the loss, so that an error can name the first bad batch
                streams.hold(batch)  # keeps the batch in memory until all students have used it
            # wait until the device has finished all steps, so that `seconds` covers them
            streams.finish()
            seconds = time.time() - started
            for student in learning:
                # if a student has diverged, only this student stops. Divergence is checked only once per epoch, because
                # reading a loss makes the host wait for the device
                with student.failing_alone():
                    student.record_training(seconds, label_file)
            save_if_stopped(students, world, signals)

            # continue with the students that have not failed; evaluate them if it is time
            learning = [student for student in learning if not student.failed]
            started = time.time()
            metrics: list[Metrics | None] = [None] * len(learning)
            digest = None
            if learning and config.evaluates(epoch):
                line.evaluating()
                # with several ranks, a signal does not end the evaluation early: `until_stop` synchronises the ranks
                # after every batch, but ranks may have different numbers of validation batches
                val_batches = validation if world.size > 1 else signals.until_stop(validation)
                metrics = [*evaluate(learning, val_batches, world)]
                # after a signal, stop here without recording the metrics: the evaluation may have been cut short
                save_if_stopped(students, world, signals)
                # saved in the checkpoint: a resumed run must be evaluated on the same images
                digest = validation.digest_of_all(world)
            seconds = time.time() - started
            for student, one in zip(learning, metrics, strict=True):
                with student.failing_alone():
                    student.finish_epoch(one, seconds, digest)
            line.evaluated([student.progress for student in learning])
            first_batch = 0  # only the first epoch after a restart may begin at a batch above 0


def train_step(student: Student, batch: Batch) -> None:
    """Take one optimizer step on this rank's rows of a batch; accumulate gradients over micro-batches.

    The loss of a micro-batch of b rows is weighted by b / B, where B is the number of rows of the batch on all ranks.
    The sum of the gradients over micro-batches and ranks is then the gradient of the mean loss over the batch, even if
    the last micro-batch is short.
    """
    world = student.world
    student.optimizer.zero_grad(set_to_none=True)
    for micro_batch in batch.split(student.micro_batch_size):
        if len(micro_batch) == 0:  # all rows of this micro-batch are on other ranks
            if student.last_micro_batch is not None:
                # forget the rows of an earlier micro-batch, which `loss_fn` has stored: the temperature calibration
                # must use only the last micro-batch
                student.last_micro_batch.clear()
            # skip the micro-batch, unless other ranks wait for this rank in batch norm or in the loss
            if not (student.joint_statistics or student.joint_loss):
                continue
        outputs = student.precision.outputs(student.model, micro_batch.images)  # [b, C], this rank's rows
        logits, labels = outputs, micro_batch
        # a joint loss (such as `dist`) is not a mean over rows, so each rank computes the loss over the rows of all
        # ranks. Gradients flow only into the rank's own rows.
        if student.joint_loss and world.size > 1:
            logits = all_rows(outputs, micro_batch.whole, world)
            labels = gather_micro_batch(micro_batch, world)
        if len(labels):
            loss = student.loss_fn(logits, labels.soft_labels, labels.targets)
        else:
            # no rows: the loss is 0, but synchronised batch norm needs this rank in the backward pass
            loss = outputs.sum()
        student.precision.scaler.scale(loss * (len(labels) / batch.whole)).backward()
        student.sums.add(loss, outputs, micro_batch.targets)  # this rank's metrics; summed over ranks later
    sum_gradients(student.model, world)  # one all-reduce per step, after all micro-batches
    student.precision.scaler.step(student.optimizer)
    student.precision.scaler.update()


@torch.no_grad()
def evaluate(students: Sequence[Student], batches: Iterable, world: World) -> list[Metrics]:
    """Return the mean cross-entropy, top-1 and top-5 of each student on the validation images of all ranks.

    Broadcast the buffers of rank 0 first, because the running statistics of batch norm may differ between ranks.

    Args:
        students: students to evaluate.
        batches: this rank's validation batches, pairs (images [b, 3 or 1, S, S], classes [b]).
        world: processes of the run; every rank must call this function.
    """
    sums = [MetricSums(student.precision.device) for student in students]
    for student in students:
        world.broadcast(student.evaluated.buffers())
        student.evaluated.eval()
    for images, targets in batches:
        for student, own in zip(students, sums, strict=True):
            with student.random:
                outputs = student.precision.outputs(student.evaluated, images)  # [b, C]
            own.add(F.cross_entropy(outputs, targets), outputs, targets)
    return [own.sum_over(world).result() for own in sums]


def save_if_stopped(students: Sequence[Student], world: World, signals: StopSignals) -> None:
    """Save checkpoints and raise Interrupted if a signal asked the run to stop; otherwise do nothing.

    Only students that have not failed are saved. If all students have failed, nothing is saved or raised.
    """
    signal_number = signals.agreed()
    training = [student for student in students if not student.failed]
    if signal_number is None or not training:
        return
    for student in training:
        if world.is_main:
            student.save()
    world.barrier()
    epoch, batches = min(student.position for student in training)
    raise Interrupted(
        f"{signal.Signals(signal_number).name} in epoch {epoch + 1} after {batches} batches; the state is saved, and "
        "the same command with --resume continues",
        128 + signal_number,
    )


def labels_of(config: FKDConfig, found: Findings, store: LabelStore) -> dict:
    """Return the description of the labels for summary.json: origin, digest, and size on disk in bytes."""
    return store.provenance() | {"digest": found.labels, "bytes": folder_bytes(config.fkd_path)}


def describe(config: TrainConfig, data: TrainingData, labels: dict) -> dict[str, dict]:
    """Return the descriptions of `labels`, `images` and `validation` images for summary.json.

    Call this function before training. If images were moved during training, a later call would fail, and the top-1
    would be lost.
    """
    images = describe_images(config.train_dir, data.train)
    images["digest"] = data.images.digests.digest() if data.images else None
    return {"labels": labels, "images": images, "validation": describe_images(config.val_dir, data.val)}


def report(students: Sequence[Student], world: World, described: dict[str, dict]) -> None:
    """Write summary.json and the curves of every student that has not failed; log its last and best top-1.

    Args:
        students: students whose training has finished or failed.
        world: processes of the run; only rank 0 writes.
        described: on rank 0, the descriptions of labels and images, from `describe`.

    Raises:
        InputError: at least one student failed. The error is raised after the results of the others are written.
    """
    if world.is_main:
        for student in students:
            if not student.failed:
                student.report(**described)
    failed = {student.name: student.failed for student in students if student.failed}
    if len(students) == 1:
        for error in failed.values():
            raise error
    if failed:
        reasons = listing([f"{name}: {error}" for name, error in failed.items()], separator="; ")
        raise InputError(f"{len(failed)} of {len(students)} students failed ({reasons})")


if __name__ == "__main__":
    sys.exit(run_script(main))
