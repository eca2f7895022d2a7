"""Train a fresh student on distilled images and stored FKD soft labels; report its top-1.

Smoke test on the demo's data (`make demo` writes it):

    python train_FKD_parallel.py --train-dir demo/work/distilled --val-dir demo/work/val \
        --fkd-path demo/work/labels --input-size 32 --batch-size 50 --epochs 5 --output-dir save/smoke

The recipe of the launchers, ImageNet-1K at 10 images per class:

    python train_FKD_parallel.py --train-dir DISTILLED --val-dir IMAGENET/val --fkd-path LABELS \
        --batch-size 50 --gradient-accumulation-steps 2 --cos --loss-type mse_gt --ce-weight 0.1 -T 20

Every view is replayed as the teacher saw it, so no teacher runs here. The last epoch's top-1 is
the headline. What a run leaves in --output-dir, and how each figure is computed, is in README.md.

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
    """Check everything, train, report."""
    config = FKDConfig.parse(argv)
    world, precision, found = preflight.begin(config)

    # every check that can fail before time is spent; `found` collects their findings
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
    """End a dry run with a picture of what students will see; arguments as for `Preview`."""
    path = Path(config.output_dir, VIEWS)
    if world.is_main:
        Preview(dataset, epoch, normalise, teacher).draw(path, names)
    log.info("dry run: everything is in place, nothing was trained; look at %s", path)


@contextlib.contextmanager
def session(students: Sequence[Student], world: World) -> Iterator[StopSignals]:
    """Own the students' folders, log to W&B, and only take note of signals, until the block ends."""
    world.barrier()  # all ranks have finished looking at the old files
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

    All students take the same batches, each as if it were alone. One that fails, most often because it diverged, leaves
    the others alone; `report` tells of it.

    Args:
        config: settings of all students.
        students: each on its device, from scratch or resumed.
        batches: of this rank.
        validation: (images, classes) of this rank.
        world: the processes of the run.
        signals: says when a stop was asked for.
        label_file: (epoch, batch) -> file of its soft labels, hard epochs not counted; for errors.

    Raises:
        Interrupted: a signal asked for a stop; the state is saved.
    """
    streams = Streams(students[0].precision.device, several=len(students) > 1)
    # several students may have come unequally far before a restart; those behind catch up
    first_epoch, first_batch = min(student.position for student in students)
    epochs = range(first_epoch, config.epochs)
    with contextlib.closing(ProgressLine(config.epochs, not config.no_progress and world.is_main)) as line:
        line.start(batches.steps(epochs) - first_batch)
        for epoch in epochs:
            if all(student.failed for student in students):
                break

            # train
            learning = [student for student in students if student.position[0] == epoch and not student.failed]
            for student in learning:
                student.start_epoch(epoch)
            started = time.time()
            stream = line.training(epoch, signals.until_stop(batches.epoch(epoch, first_batch)))
            for number, batch in enumerate(stream, start=first_batch):
                batch = streams.share(batch)
                for student in learning:
                    if number < student.progress.batch:  # it took this one before the restart
                        continue
                    with streams.stream_of(student):
                        with student.random:
                            if student.graph is None:
                                train_step(student, batch)
                            else:
                                student.graph(train_step, student, batch)
                        if student.average is not None:
                            student.average.update()
                        student.sums.end_batch()
                streams.hold(batch)
            streams.join()
            seconds = time.time() - started
            for student in learning:
                with student.failing_alone():  # this reads the sums: the only wait for the device in an epoch
                    student.record_training(seconds, label_file)
            save_if_stopped(students, world, signals)

            # evaluate if it is time to, record the epoch
            learning = [student for student in learning if not student.failed]
            started = time.time()
            metrics: list[Metrics | None] = [None] * len(learning)
            digest = None
            if learning and (epoch % config.eval_every == 0 or epoch == config.epochs - 1):
                line.evaluating()
                # ranks may have different numbers of batches, so several of them stop only after the last
                evaluated = validation if world.size > 1 else signals.until_stop(validation)
                metrics = [*evaluate(learning, evaluated, world)]
                save_if_stopped(students, world, signals)  # before a part of the validation set becomes a figure
                digest = validation.digest_of_all(world)
            seconds = time.time() - started
            for student, one in zip(learning, metrics, strict=True):
                with student.failing_alone():
                    student.finish_epoch(one, seconds, digest)
            line.evaluated([student.progress for student in learning])
            first_batch = 0  # the epochs after the first one are whole


def train_step(student: Student, batch: Batch) -> None:
    """Take one optimizer step on this rank's rows of a batch, in micro-batches.

    Micro-batch i weighs b_i / B, so that a short last one still makes the true mean over the batch; the gradients' sum
    over ranks is then that of one process with all rows.
    """
    world = student.world
    student.optimizer.zero_grad(set_to_none=True)
    for micro_batch in batch.split(student.micro_batch):
        if len(micro_batch) == 0:  # all rows of this micro-batch are on other ranks
            if student.last_micro_batch is not None:
                student.last_micro_batch.clear()
            if not (student.joint_statistics or student.joint_loss):
                continue
        outputs = logits = student.precision.outputs(student.model, micro_batch.images)  # [b, C]
        taught = micro_batch
        if student.joint_loss and world.size > 1:
            logits = all_rows(outputs, micro_batch.whole, world)
            taught = gather_micro_batch(micro_batch, world)
        # without rows the loss is zero, and its backward pass joins in the other ranks' batch statistics
        loss = student.loss_fn(logits, taught.soft_labels, taught.targets) if len(taught) else outputs.sum()
        student.precision.scaler.scale(loss * (len(taught) / batch.whole)).backward()
        student.sums.add(loss, outputs, micro_batch.targets)
    sum_gradients(student.model, world)
    student.precision.scaler.step(student.optimizer)
    student.precision.scaler.update()


@torch.no_grad()
def evaluate(students: Sequence[Student], batches: Iterable, world: World) -> list[Metrics]:
    """Return the `Metrics` of each student on the (images [b, 3, S, S], classes [b]) of all ranks.

    The loss is cross-entropy. Every rank evaluates rank 0's models: batch statistics may differ between ranks.
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
    """If a signal asked for it, save all students and raise Interrupted."""
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
    """Return what summary.json says about the labels."""
    return store.provenance() | {"digest": found.labels, "bytes": folder_bytes(config.fkd_path or "")}


def report(config: TrainConfig, data: TrainingData, students: Sequence[Student], world: World, labels: dict) -> None:
    """Write summary.json and curves.png of every student, print the headlines.

    Args:
        config: settings of all students.
        data: what they were trained and evaluated on.
        students: after their last epoch.
        world: its first rank alone writes.
        labels: where the soft labels came from.

    Raises:
        InputError: students have failed; the others are reported.
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
