"""Write FKD soft labels: show teachers every view that students will be trained on, store their answers.

    python relabel_FKD.py --data DISTILLED -a resnet18 --checkpoint TEACHER.pth -b 50 --epochs 300 \
        --mix-type cutmix --use-fp16 --fkd-path LABELS

    python relabel_FKD.py --data DISTILLED --preset r50 …        PRISM's four teachers, its ensemble rule
    python relabel_FKD.py … --bits 8 --keep-topk 100 --views drawn      smaller labels
    python relabel_FKD.py … --format tar                         files that SRe2L's and PRISM's code reads
    torchrun --nproc_per_node 4 relabel_FKD.py …                 epochs shared out over processes, the same bytes

Views are a pure function of (--fkd-seed, epoch, batch): the number of workers does not matter, and a
call that was killed goes on at the first unfinished epoch and ends with the same bytes. Images are
visited in the order of the reference's sampler.
"""

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch

from utils.labels.packed import PackedWriter, digests_of_started
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import digest_of_names, make_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnBatch, DrawnViews
from utils.run import arguments, preflight
from utils.run.start import begin
from utils.run.teacher_check import check_started
from utils.system.log import log, progress_bar
from utils.system.parser import Parser
from utils.system.script import run_script
from utils.training.teachers import Ensemble
from utils.views.device import DeviceBatches
from utils.views.folders import ImageSet, image_sizes, open_folder
from utils.views.identity import KnownImages, know_images
from utils.views.loaders import pick_loader
from utils.views.preview import Preview
from utils.views.replay import Normalise
from utils.views.workers import ViewDataset


def parse(argv):
    """Parse the command line."""
    parser = Parser("Write FKD soft labels with one teacher or several.")
    arguments.add_relabel_arguments(parser)
    arguments.add_device_arguments(parser)
    return arguments.settle_relabel(parser.parse_args(argv))


def main(argv=None):
    """Run the phases: parse, preflight, build, loop."""
    args = parse(argv)
    world, precision = begin(args)

    # preflight
    folder = open_folder(args.data, "--data")
    preflight.warn_of_folder_order(folder.classes)
    preflight.check_images(folder.samples)
    draw = partial(DrawnViews, arguments.view_policy(args), len(folder.samples), args.batch_size)
    views = draw()
    names, files, rule = arguments.choose_teachers(args)
    weights = arguments.choose_weights(args, names, files)
    preflight.warn_of_last_batch(len(folder.samples), args.batch_size)

    # build
    torch.backends.cudnn.benchmark = False  # another process might find another algorithm the fastest: other bytes
    teachers = Ensemble(names, files, rule, precision, args.stem, weights=weights, input_size=args.input_size)
    teachers.refuse_fewer_classes(len(folder.classes), f"--data {args.data}", args.input_size)
    normalise = Normalise(args.mean, args.std, precision.device, precision.memory_format)
    num_classes = teachers.num_classes(args.input_size)
    classes = preflight.number_relabelled(args, folder, num_classes)
    dataset = ViewDataset(folder.samples, draw(), args.input_size)  # its own, which another thread may read
    answers = preflight.report_live_agreement(args, dataset, 0, normalise, teachers, classes, world)
    Codec(args.bits, args.keep_topk, args.views).encode(answers)  # refuses answers that it cannot hold
    if args.dry_run:
        Preview(dataset, 0, normalise, teachers).draw(Path(f"{args.fkd_path}-views.png"), classes)
        log.info("dry run: everything is in place, nothing was labelled; look at %s-views.png", args.fkd_path)
        return
    kind = world.broadcast_object(pick_loader(args.loader, folder.samples, args.workers, precision.device))
    replay = "on the device" if kind is DeviceBatches else None  # not to the bit what PIL does
    images = know_images(args.data, folder.samples, args.workers, digests_of_started(args.fkd_path), world)
    writer = open_writer(args, folder, views, teachers, replay, images, classes, world.is_main)
    todo = world.broadcast_object(writer.missing(args.epochs))
    if len(todo) < args.epochs:
        check_started(args, folder.samples, teachers)
    log.info(
        "relabel %d images x %d of %d epochs with %s on %s in %s",
        *(len(folder.samples), len(todo), args.epochs, str(teachers), precision.device, precision),
    )

    check_room(args, len(folder.samples) * len(todo), num_classes)

    # loop
    todo = todo[world.rank :: world.size]
    if todo:
        batches = kind(dataset, todo, normalise, args.workers, precision.device)
        write_epochs(writer, todo, views, batches, teachers, image_sizes(folder.samples).long(), args.no_progress)
    world.barrier()
    if world.is_main:
        writer.finish()
    world.barrier()
    log.info("labels of %d epochs in %s", args.epochs, args.fkd_path)


def check_room(args, num_views, num_classes):
    """Check that so many labels fit on the disk."""
    size = Codec(args.bits, args.keep_topk, args.views).bytes_per_image(num_classes)
    preflight.check_disk(args.fkd_path, size * num_views, "the labels need")


def write_epochs(writer, epochs, views, batches, teachers, sizes, no_progress):
    """Show the teachers every view of `epochs` and write what they answer; `sizes` int64 [N, 2] are (H, W)."""
    for epoch in epochs:
        stream = progress_bar(batches.epoch(epoch), f"epoch {epoch}", views.batches_per_epoch, not no_progress)
        answers = enumerate(teachers.answers_to(stream))
        writer.write(epoch, [labelled(views.read(epoch, batch), logits, sizes) for batch, logits in answers])


def open_writer(
    args: Namespace,
    folder: ImageSet,
    views: DrawnViews,
    teachers: Ensemble,
    replay: str | None,
    images: KnownImages,
    names: list[str],
    leads: bool,
) -> TarWriter | PackedWriter:
    """Return the writer of --format; a started packed store is continued if its settings and images are the same.

    Of several processes the one that `leads` prepares and checks the folder. `replay` says how views were
    replayed where that could matter; `names` are the folders of the teachers' classes.
    """
    # the words do not depend on how many views were looked at, so that a continued store has the same settings
    accepted = "the teachers' answers did not fit the class folders when the labels were made"
    settings = {
        **({"labels_accepted": accepted} if args.labels_accepted else {}),
        "classes": names[: max(folder.targets) + 1],
        "teachers": teachers.described,
        "ensemble": teachers.rule,
        "stem": args.stem,
        "arithmetic": str(teachers.precision),
        "replay": replay,
        "mean": list(args.mean),
        "std": list(args.std),
        "class_names": digest_of_names(folder.classes),
    }
    if args.format == "tar":
        dtype = torch.float16 if args.bits == 16 else torch.float32
        settings["input_size"] = args.input_size  # of packed labels the policy states it
        return TarWriter(args.fkd_path, dtype, leads=leads, image_digests=images.digests, settings=settings)
    codec = Codec(args.bits, args.keep_topk, args.views)
    manifest = make_manifest(
        codec,
        num_images=views.num_images,
        num_classes=teachers.num_classes(args.input_size),
        batch_size=args.batch_size,
        epochs=args.epochs,
        mix_type=views.policy.mix_type,
        has_index=args.views == "stored",
        settings=settings,
        policy=views.policy,
    )
    sizes = image_sizes(folder.samples) if args.views == "drawn" else None
    return PackedWriter(args.fkd_path, manifest, sizes, leads, images.digests, images.names)


def labelled(drawn: DrawnBatch, logits: torch.Tensor, sizes: torch.Tensor) -> BatchLabels:
    """What is stored for a batch: its views, and the answers [B, C]; `sizes` int64 [N, 2] are all images' (H, W)."""
    return drawn.labelled(logits, sizes[drawn.index].tolist())


if __name__ == "__main__":
    sys.exit(run_script(main))
