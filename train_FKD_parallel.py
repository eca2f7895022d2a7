"""Train a fresh student on distilled images and stored FKD soft labels; report its top-1.

Smoke test on the demo's data (`make demo` writes it):

    python train_FKD_parallel.py --train-dir demo/work/distilled --val-dir demo/work/val \
        --fkd-path demo/work/labels --input-size 32 --batch-size 50 --epochs 5 --output-dir save/smoke

The recipe of the launchers, ImageNet-1K at 10 images per class:

    python train_FKD_parallel.py --train-dir DISTILLED --val-dir IMAGENET/val --fkd-path LABELS \
        --batch-size 50 --gradient-accumulation-steps 2 --cos --loss-type mse_gt --ce-weight 0.1 -T 20

Every view is replayed as the teacher saw it, so no teacher runs here. The reported result is the last
epoch's top-1. README.md lists the files that a run leaves in --output-dir and defines each figure.

Shapes: B images in a batch, b of them in a micro-batch, C classes, S x S pixels.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from utils.config import Findings, FKDConfig, TrainConfig
from utils.data.batch import Batch
from utils.data.preview import Preview
from utils.data.replay import Normalise
from utils.data.validation import ValidationBatches
from utils.data.workers import ViewDataset
from utils.labels.store import LabelStore
from utils.run import preflight
from utils.run.folder import VIEWS, RunFolder, open_folders
from utils.run.label_checks import check_labels, hard_views, soft_epochs, stated_classes
from utils.run.loading import TrainingBatches, TrainingData, build_batches, build_validation, plan_memory
from utils.run.progress_line import ProgressLine
from utils.run.student import Student
from utils.run.summary import describe_images
from utils.system.distributed import World
from utils.system.errors import InputError, Interrupted
from utils.system.files import folder_bytes
from utils.system.log import log
from utils.system.process import StopSignals, run_script
from utils.training.data_parallel import all_rows, gather_micro_batch, sum_gradients
from utils.training.metrics import Metrics, MetricSums
from utils.training.precision import Precision
from utils.training.streams import Streams


def main(argv: Sequence[str] | None = None) -> None:
    """Check settings, labels and images; train the students; report their top-1."""
    config = FKDConfig.parse(argv)
    world, precision, found = preflight.begin(config)

    # run all checks before hours of training are spent; `found` collects the settings that they find out
    folders = open_folders(config, world)
    train_set, val_set = preflight.check_folders(config.train_dir, config.val_dir)
    views, found = check_labels(config, found, train_set)
    store = views.store
    classes = stated_classes(store)
    names, found = preflight.number_classes(config, found, train_set, val_set, store.num_classes, classes)
    images, found = preflight.identify_images(
        config, found, train_set.samples, store.image_digests, world, config.verify_labels
    )
    found = preflight.record_images(config, found, train_set.samples, val_set.samples)
    hard = hard_views(config, found, train_set.samples, store.num_classes)
    found = preflight.report_labels(config, found, train_set, val_set, views, names)
    data = TrainingData(train_set.samples, val_set.samples, views, store.num_classes, names, images, hard)

    students = build_students(config, found, data, folders, precision, world)
    plan = plan_memory(config, found, data, students, world)
    if config.dry_run:
        draw_views(config, names, world, ViewDataset(data.train, views, found.input_size), soft_epochs(config).start)
        return

    with session(students, world) as signals:
        batches = build_batches(config, found, data, plan, students, world)
        validation = build_validation(found, data, plan, students, world)
        train(config, students, batches, validation, world, signals, views.file)
        report(config, data, students, world, labels_of(config, found, store))


def build_students(
    config: TrainConfig,
    found: Findings,
    data: TrainingData,
    folders: Sequence[RunFolder],
    precision: Precision,
    world: World,
) -> list[Student]:
    """Build every student, from scratch or from its checkpoint, and check that it can train and save."""
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
    epoch: int,
    normalise: Normalise | None = None,
    teacher: Callable | None = None,
) -> None:
    """Write a picture of the views that students will see, to end a dry run; arguments as for `Preview`."""
    path = Path(config.output_dir, VIEWS)
    if world.is_main:
        Preview(dataset, epoch, normalise, teacher).draw(path, names)
    log.info("dry run: everything is in place, nothing was trained; look at %s", path)


@contextlib.contextmanager
def session(students: Sequence[Student], world: World) -> Iterator[StopSignals]:
    """Claim the students' folders, log to W&B, and only record stop signals, until the block ends."""
    world.barrier()  # all ranks must have read the old files before rank 0 changes them
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
    """Train the epochs that are left; evaluate every --eval-every epochs and after the last.

    All students train on the same batches, and each gets the result that it would get alone. If one fails, most often
    by divergence, the others continue, and `report` raises the error at the end.

    Args:
        config: settings of all students.
        students: from scratch or resumed.
        batches: this rank's shard of every training batch.
        validation: this rank's batches (images, classes) of the validation set.
        world: the processes of the run.
        signals: records signals that ask the run to stop.
        label_file: (epoch, batch) -> label file of the batch, named in errors; `epoch` counts soft epochs only.

    Raises:
        Interrupted: a signal asked for a stop; the state is saved.
    """
    streams = Streams(students[0].precision.device, several=len(students) > 1)
    # checkpoints of several students may be at different batches: start at the earliest one
    first_epoch, first_batch = min(student.position for student in students)
    epochs = range(first_epoch, config.epochs)
    with contextlib.closing(ProgressLine(config.epochs, not config.no_progress and world.is_main)) as line:
        line.start(batches.steps(epochs) - first_batch)  # batches taken before a restart do not count
        for epoch in epochs:
            if all(student.failed for student in students):
                break

            # train; students whose checkpoint is of a later epoch wait until the others have caught up
            learning = [student for student in students if student.position[0] == epoch and not student.failed]
            for student in learning:
                student.start_epoch(epoch)  # sets learning rate, loss, micro-batch size and sums
            started = time.time()
            # until_stop ends the stream early after a signal
            stream = line.training(epoch, signals.until_stop(batches.epoch(epoch, first_batch)))
            for number, batch in enumerate(stream, start=first_batch):
                batch = streams.share(batch)  # replays the views once for all, if there are several students
                for student in learning:
                    if number < student.progress.batch:  # this student took the batch before the restart
                        continue
                    with streams.stream_of(student):
                        with student.random:  # dropout masks as if the student trained alone
                            if student.graph is None:
                                train_step(student, batch)
                            else:
                                student.graph(train_step, student, batch)  # as a CUDA graph, captured at first
                        if student.average is not None:
                            student.average.update()  # EMA of the weights
                        student.sums.end_batch()  # notes the loss, to name the first batch that diverged
                streams.hold(batch)  # keeps the batch's memory until all students have used it
            streams.join()  # below, the models are used on the current stream
            seconds = time.time() - started
            for student in learning:
                # a diverged student stops alone; its loss is only read here, because reading waits for the device
                with student.failing_alone():
                    student.record_training(seconds, label_file)
            save_if_stopped(students, world, signals)

            # evaluate every --eval-every epochs, record every epoch
            learning = [student for student in learning if not student.failed]
            started = time.time()
            metrics: list[Metrics | None] = [None] * len(learning)
            digest = None
            if learning and (epoch % config.eval_every == 0 or epoch == config.epochs - 1):
                line.evaluating()
                # until_stop all-reduces after each batch, but ranks may have unequally many: they stop after the last
                evaluated = validation if world.size > 1 else signals.until_stop(validation)
                metrics = [*evaluate(learning, evaluated, world)]
                save_if_stopped(students, world, signals)  # an evaluation that was cut short is not recorded
                digest = validation.digest_of_all(world)  # a resumed run must find the same images
            seconds = time.time() - started
            for student, one in zip(learning, metrics, strict=True):
                with student.failing_alone():
                    student.finish_epoch(one, seconds, digest)
            line.evaluated([student.progress for student in learning])
            first_batch = 0  # only the first epoch can start in its middle


def train_step(student: Student, batch: Batch) -> None:
    """Take one optimizer step on this rank's rows of a batch, in micro-batches.

    The loss of a micro-batch has the weight b / B, so that gradients add up to that of the mean over the batch even if
    the last micro-batch is short. B counts the rows of all ranks: gradients are then summed over ranks, not averaged.
    """
    world = student.world
    student.optimizer.zero_grad(set_to_none=True)
    for micro_batch in batch.split(student.micro_batch):
        if len(micro_batch) == 0:  # all rows of this micro-batch are on other ranks
            if student.last_micro_batch is not None:
                student.last_micro_batch.clear()  # its rows are older; calibration must not use them
            if not (student.joint_statistics or student.joint_loss):
                continue  # else this rank must take part in the collectives below
        outputs = student.precision.outputs(student.model, micro_batch.images)  # [b, C], of this rank's rows
        logits, labels = outputs, micro_batch
        if student.joint_loss and world.size > 1:  # this loss is no mean over rows, so it needs those of all ranks
            logits = all_rows(outputs, micro_batch.whole, world)
            labels = gather_micro_batch(micro_batch, world)
        if len(labels):
            loss = student.loss_fn(logits, labels.soft_labels, labels.targets)
        else:  # zero, but its backward pass takes part in the all-reduces of the batch statistics
            loss = outputs.sum()
        student.precision.scaler.scale(loss * (len(labels) / batch.whole)).backward()
        student.sums.add(loss, outputs, micro_batch.targets)  # own rows; added up over ranks after the epoch
    sum_gradients(student.model, world)  # one all-reduce a step, after all micro-batches
    student.precision.scaler.step(student.optimizer)
    student.precision.scaler.update()


@torch.no_grad()
def evaluate(students: Sequence[Student], batches: Iterable, world: World) -> list[Metrics]:
    """Return the `Metrics` of each student on the validation batches of all ranks.

    Batches are pairs: images [b, 3, S, S], classes [b]. The loss is cross-entropy. All ranks use rank 0's buffers,
    because the running statistics of batch norm may differ between ranks.
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
    """Save all students that have not failed, and raise Interrupted, if a signal asked the run to stop."""
    number = signals.agreed()
    training = [student for student in students if not student.failed]
    if number is None or not training:
        return
    for student in training:
        if world.is_main:
            student.save()
    world.barrier()
    epoch, batches = min(student.position for student in training)
    raise Interrupted(
        f"{signal.Signals(number).name} in epoch {epoch} after {batches} batches; the state is saved, and the same "
        "command with --resume continues",
        128 + number,
    )


def labels_of(config: FKDConfig, found: Findings, store: LabelStore) -> dict:
    """Return the entry `labels` of summary.json: provenance, digest, bytes on disk."""
    return store.provenance() | {"digest": found.labels, "bytes": folder_bytes(config.fkd_path or "")}


def report(config: TrainConfig, data: TrainingData, students: Sequence[Student], world: World, labels: dict) -> None:
    """Write summary.json and curves.png of every student, log its last and best top-1.

    Args:
        config: settings of all students.
        data: training and validation images.
        students: each has finished its last epoch or failed.
        world: the processes of the run; only rank 0 writes.
        labels: entry `labels` of summary.json.

    Raises:
        InputError: at least one student failed; the others are reported before.
    """
    if world.is_main:
        images = describe_images(config.train_dir, data.train)
        images["digest"] = data.images.digests.digest() if data.images else None
        validation = describe_images(config.val_dir, data.val)
        for student in students:
            if not student.failed:
                student.report(labels, images, validation)
    failed = {student.name: student.failed for student in students if student.failed}
    if len(students) == 1:
        for error in failed.values():
            raise error
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise InputError(f"{len(failed)} of {len(students)} students failed ({reasons})")


if __name__ == "__main__":
    sys.exit(run_script(main))
