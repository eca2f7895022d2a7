"""A run: students that train on the same batches, in the same process, each as if it were alone."""

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from utils.labels.hard import HardViews
from utils.labels.store import ViewSource
from utils.labels.training_views import TrainingViews
from utils.run import arguments
from utils.run.folder import RunFolder
from utils.run.progress_line import ProgressLine
from utils.run.side_by_side import students
from utils.run.student import Student
from utils.run.summary import describe_images
from utils.run.training_arguments import phases_of
from utils.system.errors import InputError, Interrupted
from utils.system.log import log
from utils.system.ranks import ALONE, Share, World
from utils.system.signals import StopSignals
from utils.training.cuda_streams import Streams
from utils.training.epoch import evaluate, train_one_epoch
from utils.training.memory_estimate import MemoryEstimate
from utils.training.precision import Precision
from utils.views.batch import Batches
from utils.views.budget import Budget, Plan, free_bytes, has_own_memory, label_bytes, make_plan
from utils.views.folders import Samples
from utils.views.identity import KnownImages
from utils.views.loaders import build_batches, decoded_bytes, pick_loader
from utils.views.phased import PhasedBatches, steps
from utils.views.replay import Normalise
from utils.views.validation import ROWS_ON_A_DEVICE, ValidationBatches
from utils.views.workers import ViewDataset


class Run:
    """The loop over epochs and batches, which all students of a run share.

    Args:
        args: settled arguments, with all that preflight noted in them.
        num_classes: outputs of the students.
        folders: the `RunFolder` of each of `students(args)`.
        precision: `Precision` on the run's device.
        world: `World`; its first rank alone writes and logs.
        images: the training images; None in a dry run, which need not know them.

    Attributes:
        students: every `Student`.
        failed: the error of each student that has failed, by its name.

    Raises:
        InputError: a model cannot be built, or --resume does not fit.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        num_classes: int,
        folders: Sequence[RunFolder],
        precision: Precision,
        world: World = ALONE,
        images: KnownImages | None = None,
    ) -> None:
        self.args, self.precision, self.world, self.images = args, precision, world, images
        own = zip(students(args), folders, strict=True)
        self.students = [Student(one, num_classes, folder, precision.device, world, images) for one, folder in own]
        self.phases = phases_of(args)
        self.streams = Streams(precision.device, several=len(self.students) > 1)
        self.signals = StopSignals(world.all_reduce_max, alone=world.size == 1)
        self.failed: dict[str, InputError] = {}
        self.plan: Plan | None = None
        self.line = ProgressLine(args.epochs, not args.no_progress)
        self.validated: str | None = None  # digest of the validation images, known after the first evaluation

    def shared(self, source: ViewSource, micro_batch: int) -> ViewSource:
        """Return the part of a label store or of `DrawnViews` that this rank works on."""
        if self.world.size == 1:
            return source
        few = min(micro_batch, source.num_images) // self.world.size
        if few < 8 and not self.args.sync_bn:
            log.warning(
                "warning: %d processes have %d images each of a micro-batch, few for batch statistics; consider "
                "--sync-bn or fewer --gradient-accumulation-steps",
                *(self.world.size, few),
            )
        return replace(TrainingViews.of(source), share=Share(self.world.rank, self.world.size, micro_batch))

    def batches(
        self,
        samples: Samples,
        source: ViewSource,
        validation: Sequence[tuple[str, int]] = (),
        hard: HardViews | None = None,
    ) -> Batches:
        """Return the training batches of the epochs that are left.

        Args:
            samples: list of (path, class).
            source: a label store or `DrawnViews`; with several processes, this one works on its share of it.
            validation: list of (path, class) that will be evaluated, which share the device's memory.
            hard: what its hard epochs show; all of their rows are one micro-batch.
        """
        args, device, phases = self.args, self.precision.device, self.phases
        dataset = self.planned(samples, source, validation, hard)
        epochs = range(phases.soft_before(self.position[0]), phases.soft)
        batches = build_batches(args.loader, dataset, epochs, self.normalise, args.workers, device, self.plan)
        if hard is None:
            return batches
        dataset = ViewDataset(samples, self.shared(hard, args.hard_batch_size), args.input_size)
        epochs = range(phases.hard_before(self.position[0]), phases.hard)
        return PhasedBatches(batches, batches.of_same_images(dataset, epochs), phases)

    def planned(
        self, samples: Samples, source: ViewSource, validation: Sequence[tuple[str, int]], hard: HardViews | None
    ) -> ViewDataset:
        """Return the dataset of `batches`, after planning what its device holds; arguments as there."""
        dataset = ViewDataset(samples, self.shared(source, arguments.micro_batch(self.args)), self.args.input_size)
        if has_own_memory(self.precision.device):
            self.plan = make_plan(self.budget(dataset, validation, hard), source.batches_per_epoch, self.args.loader)
        return dataset

    def announce_loader(
        self,
        samples: Samples,
        source: ViewSource,
        validation: Sequence[tuple[str, int]] = (),
        hard: HardViews | None = None,
    ) -> None:
        """Log which loader `batches` would take, and why; for a dry run, which decodes nothing."""
        self.planned(samples, source, validation, hard)
        pick_loader(self.args.loader, samples, self.args.workers, self.precision.device, self.plan)

    def budget(
        self, dataset: ViewDataset, validation: Sequence[tuple[str, int]], hard: HardViews | None = None
    ) -> Budget:
        """What this run's device must hold; of hard epochs, labels and a recorded step beside the others'."""
        args, also = self.args, self.args.hard_batch_size or 0
        batch, rows = args.batch_size + also, arguments.micro_batch(args) + also
        estimates = [MemoryEstimate(student.model, args.input_size, self.precision) for student in self.students]
        passing = [one.evaluation_bytes(min(ROWS_ON_A_DEVICE, len(validation))) for one in estimates]
        short = dataset.source.smallest_batch() % args.batch_size  # is not in the recorded step, nor in its memory
        if short:
            passing += [one.step_bytes(short, min(short, rows)) for one in estimates]
        free = free_bytes(self.precision.device)
        labels = label_bytes(dataset.source, self.phases.soft_before(self.position[0]))
        return Budget(
            images=0 if args.loader == "workers" else decoded_bytes(dataset.samples, self.precision.device, free),
            labels=labels + (label_bytes(hard, 0) if hard else 0),
            validation=3 * args.input_size**2 * len(validation) // self.world.size,
            training=sum(one.training_bytes(batch, rows) for one in estimates) + max(passing),
            free=free,
        )

    def validation(self, samples: Samples) -> ValidationBatches:
        """Return this rank's validation batches of a list of (path, class)."""
        part = samples[self.world.rank :: self.world.size]
        args, on_device = self.args, self.plan is not None and self.plan.validation_on_device
        return ValidationBatches(
            part,
            args.input_size,
            self.normalise,
            args.workers,
            self.precision.device,
            on_device=on_device,
            resize=args.val_resize,
        )

    @property
    def normalise(self) -> Normalise:
        """What turns views into the students' input."""
        return Normalise(self.args.mean, self.args.std, self.precision.device, self.precision.memory_format)

    @property
    def epochs(self) -> range:
        """The epochs that are left."""
        return range(self.position[0], self.args.epochs)

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, batch) that comes next: that of the student that has come least far."""
        return min(student.position for student in self.in_training(self.students))

    def in_training(self, students: Sequence[Student]) -> list[Student]:
        """Those of `students` that have not failed."""
        return [student for student in students if student.name not in self.failed]

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Own the folders, log to W&B, and note signals, until the block ends; then leave nothing behind."""
        self.world.barrier()  # nobody looks at what was there before any more
        with self.signals, contextlib.ExitStack() as sessions:
            for student in self.students:
                sessions.enter_context(student.session())
            try:
                yield
            finally:
                self.line.close()

    def fit(self, batches: Batches, validation: Iterable, label_file: Callable | None = None) -> None:
        """Train the epochs that are left; evaluate every --eval-every epochs and after the last.

        A student that fails, most often since it diverged, leaves the others alone; `report` tells of it.

        Args:
            batches: `epoch(e, first_batch)` yields the `Batch`es of epoch e.
            validation: iterable of (images, targets).
            label_file: (epoch, batch) -> file of its soft labels, hard epochs not counted; for errors.

        Raises:
            Interrupted: a signal asked for a stop; the state is saved.
        """
        first_batch = self.position[1]  # of the first epoch that is left; the later ones are whole
        self.line.start(steps(batches, self.epochs) - first_batch)
        for epoch in self.epochs:
            students = [student for student in self.in_training(self.students) if student.progress.epoch == epoch]
            self.train_epoch(epoch, students, batches, first_batch, label_file)
            self.finish_epoch(epoch, self.in_training(students), validation)
            first_batch = 0
            if not self.in_training(self.students):
                break

    def train_epoch(
        self, epoch: int, students: Sequence[Student], batches: Batches, first_batch: int, label_file: Callable | None
    ) -> None:
        """Train one epoch, or what is left of it from `first_batch` on."""
        started = time.time()
        for student in students:
            student.start_epoch(epoch)
        stream = self.signals.until_stop(batches.epoch(epoch, first_batch))
        shown = self.line.training(epoch, stream)
        train_one_epoch([student.learner for student in students], shown, first_batch, self.streams)
        seconds = time.time() - started
        stored = label_file and partial(label_file, self.phases.soft_before(epoch))
        for student in students:
            with self.others_go_on(student):
                student.note_training(seconds, None if self.phases.is_hard(epoch) else stored)
        self.stop_if_asked()

    def finish_epoch(self, epoch: int, students: Sequence[Student], validation: Iterable) -> None:
        """Evaluate where it is time to, and record the epoch."""
        metrics, started = [None] * len(students), time.time()
        if students and (epoch % self.args.eval_every == 0 or epoch == self.args.epochs - 1):
            metrics = self.evaluate(students, validation)
        seconds = time.time() - started
        for student, one in zip(students, metrics, strict=True):
            with self.others_go_on(student):
                if one is not None and self.validated:
                    student.note_validation(self.validated)
                student.finish_epoch(one, seconds)
        self.line.evaluated([student.progress for student in students])

    def evaluate(self, students: Sequence[Student], validation: Iterable) -> list:
        """Return the `Metrics` of each student on the validation set."""
        # ranks may have different numbers of batches, so several stop only after the last
        stream = validation if self.world.size > 1 else self.signals.until_stop(validation)
        self.line.evaluating()
        metrics = evaluate([student.learner for student in students], stream, self.world)
        self.stop_if_asked()  # before a part of the validation set becomes a figure
        shares = self.world.all_gather_object(getattr(validation, "digest", None))
        known = [share for share in shares if share is not None]
        if len(known) == len(shares):
            self.validated = f"{sum(known) % 2**64:016x}"
        return metrics

    @contextlib.contextmanager
    def others_go_on(self, student: Student) -> Iterator[None]:
        """Where something is wrong with one student alone, note it and go on without it."""
        try:
            yield
        except InputError as error:
            self.failed[student.name] = error
            if len(self.students) > 1:
                student.log.warning("FAILED: %s", error)

    def stop_if_asked(self) -> None:
        """Where a signal asked for it, save and raise Interrupted."""
        number = self.signals.agreed()
        students = self.in_training(self.students)
        if number is None or not students:
            return
        for student in students if self.world.is_main else []:
            student.save()
        self.world.barrier()
        epoch, batches = self.position
        raise Interrupted(
            f"{signal.Signals(number).name} in epoch {epoch} after {batches} batches; the state is "
            "saved, and the same command with --resume continues",
            128 + number,
        )

    def report(self, labels: dict, samples: Samples, validation: Samples) -> None:
        """Write summary.json and curves.png of every student, print the headlines.

        Args:
            labels: where the soft labels came from, for summary.json.
            samples, validation: training and validation images as lists of (path, class).

        Raises:
            InputError: students have failed; the others are reported.
        """
        if self.world.is_main:
            images = describe_images(self.args.train_dir, samples)
            images["digest"] = self.images.digests.digest() if self.images else None
            evaluated = describe_images(self.args.val_dir, validation)
            for student in self.in_training(self.students):
                student.report(labels, images, evaluated)
        if len(self.students) == 1:
            for error in self.failed.values():
                raise error
        if self.failed:
            what = "; ".join(f"{name}: {error}" for name, error in self.failed.items())
            raise InputError(f"{len(self.failed)} of {len(self.students)} students failed ({what})")
