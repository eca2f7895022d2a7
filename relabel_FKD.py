# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""Write FKD soft labels: compute and store teachers' logits for every view that students will train on.

A view is an augmented image: a random crop that is resized, may be flipped, and may be mixed with the view of another
image (cutmix or mixup).

    python relabel_FKD.py --data DISTILLED -a resnet18 --checkpoint TEACHER.pth -b 50 --epochs 300 \
        --mix-type cutmix --use-fp16 --fkd-path LABELS

    python relabel_FKD.py --data DISTILLED --preset r50 …        PRISM's four teachers and ensemble rule
    python relabel_FKD.py --data DISTILLED --preset cvdd …       CV-DD's five teachers, weighted, and its BSSL
    python relabel_FKD.py … --bits 8 --keep-topk 100 --views drawn      smaller labels
    python relabel_FKD.py … --format tar                         files that SRe2L's and PRISM's code reads
    torchrun --nproc_per_node 4 relabel_FKD.py …                 several processes share the epochs; same label files

The views depend only on the view flags, --fkd-seed, epoch and batch, not on the number of worker processes. If a
run was killed, repeat the command: packed labels (the default format) resume at the first unfinished epoch, and the
finished files are the same, byte for byte, as without the interruption. Images are visited in the order of the
sampler in SRe2L's and PRISM's code.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.config import Findings, RelabelConfig, alone, resolve_views
from utils.system.process import check_command_line, run_script

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below, which take seconds
    check_command_line(RelabelConfig.parse)

import torch

from utils.data.device import DeviceBatches
from utils.data.identity import KnownImages, know_images
from utils.data.image_sets import open_images
from utils.data.images import ImageSet, image_sizes
from utils.data.preview import Preview
from utils.data.workers import ViewDataset
from utils.labels.packed import PackedWriter, digests_of_started
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import digest_of_names, make_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnBatch, DrawnViews
from utils.run import preflight
from utils.run.classes import select_classes
from utils.run.loading import batch_class, inspect_pixels, normalise_for, plan_images
from utils.run.teacher_check import check_started
from utils.system.log import ProgressBar, log
from utils.training.teachers import Ensemble, open_committee


def main(argv: Sequence[str] | None = None) -> None:
    """Check settings, images and teachers; then write the teachers' logits for every view to the label folder."""
    config = RelabelConfig.parse(argv)
    world, precision, found = preflight.begin(config)

    # run all checks before hours of labelling are spent
    folder = open_images(config.data, "--data", "train", config.normalised)
    preflight.warn_of_folder_order(folder.classes)
    if config.subset is not None:
        select_classes(config.subset, folder, "--data")
    preflight.check_images(folder.samples)
    found = resolve_views(config, found, {}, side=folder.side)
    chosen = config.teachers()
    found = inspect_pixels(found, [folder], chosen.names, chosen.files)
    policy = preflight.view_policy(config, found)
    views = DrawnViews(policy, len(folder.samples), config.batch_size)
    preflight.warn_of_last_batch(len(folder.samples), config.batch_size)
    # no autotuning: cuDNN could choose other algorithms in another process, which would change the logits' last bits
    torch.backends.cudnn.benchmark = False
    teachers = open_committee(chosen, precision, found.input_size, found.channels)
    count, size = len(folder.samples), config.batch_size
    teachers.refuse_small_batch(
        count % size or min(count, size), found.input_size, f"give another --batch-size than {size} for {count} images"
    )
    teachers.refuse_fewer_classes(len(folder.classes), f"--data {config.data}", found.input_size)
    found = preflight.slice_teacher(config, found, teachers, folder)
    num_classes = teachers.num_classes(found.input_size)
    classes = preflight.number_relabelled(config, folder, num_classes)
    normalise = normalise_for(found, precision)
    # a second DrawnViews for the dataset: a loader thread may read the dataset while the main thread uses `views`
    again = DrawnViews(policy, len(folder.samples), config.batch_size)
    dataset = ViewDataset(folder.samples, again, found.input_size, found.channels)
    answers, found = preflight.report_live_agreement(config, found, dataset, 0, normalise, teachers, classes, world)
    codec = Codec(config.bits or 32, config.keep_topk, config.views)
    # encode a few logits as a trial: this raises an error if the label format cannot represent them
    codec.encode(answers)
    if config.dry_run:
        preview = Preview(dataset, range(config.epochs), normalise, teachers)
        preview.draw(Path(f"{config.fkd_path}-views.png"), classes, Path(config.data).name, f"teacher {teachers}")
        log.info("dry run: everything is in place, nothing was labelled; look at %s-views.png", config.fkd_path)
        return

    # choose the image loader, then create the label folder or resume one
    resident = plan_images(config.loader, folder.samples, found, precision.device, world)
    kind = batch_class(resident, precision.device)
    # recorded with the labels, because images that are resized on the device differ slightly from PIL's
    replay = "on the device" if kind is DeviceBatches else None
    images = know_images(config.data, folder.samples, digests_of_started(config.fkd_path), world)
    writer = open_writer(config, found, codec, folder, views, teachers, replay, images, classes, world.is_main)
    todo = world.broadcast_object(writer.missing(config.epochs))
    if len(todo) < config.epochs:
        check_started(config, found, folder.samples, teachers)
    log.info(
        "relabel %d images x %d of %d epochs with %s on %s in %s",
        len(folder.samples),
        len(todo),
        config.epochs,
        teachers,
        precision.device,
        precision,
    )
    needed = codec.bytes_per_image(num_classes) * len(folder.samples) * len(todo)
    preflight.check_disk(config.fkd_path, needed, "the labels need")

    # compute and write the teachers' logits for every view of this rank's epochs
    todo = todo[world.rank :: world.size]
    if todo:
        batches = kind(dataset, todo, normalise, found.workers, precision.device)
        sizes = image_sizes(folder.samples).long()  # [N, 2], (H, W) of each image
        hidden = config.no_progress or not world.is_main
        with ProgressBar(total=len(todo) * views.batches_per_epoch, disable=hidden) as bar:
            for epoch in todo:
                bar.set_description_str(f"labels of epoch {epoch + 1}/{config.epochs}", refresh=False)
                stream = bar.counting(batches.epoch(epoch))
                labels = [
                    labelled(views.read(epoch, batch), logits, sizes)
                    for batch, logits in enumerate(teachers.answers_to(stream))
                ]
                writer.write(epoch, labels)
    world.barrier()
    if world.is_main:
        writer.finish()
    world.barrier()
    log.info("labels of %d epochs in %s", config.epochs, config.fkd_path)


def open_writer(
    config: RelabelConfig,
    found: Findings,
    codec: Codec,
    folder: ImageSet,
    views: DrawnViews,
    teachers: Ensemble,
    replay: str | None,
    images: KnownImages,
    names: list[str],
    leads: bool,
) -> TarWriter | PackedWriter:
    """Return the object that writes labels in the format of --format; continue packed labels of an interrupted run.

    Args:
        config: flags of the run.
        found: settings that were derived from the image folder, the teachers and the machine.
        codec: compression of the logits.
        folder: images to label.
        views: views of the images, drawn at random.
        teachers: teachers whose logits are stored.
        replay: where views are cropped and resized: "on the device", or None for PIL on the host.
        images: names and digests of the images in `folder`.
        names: name of each class, in the order of the teachers' outputs.
        leads: whether this process creates and checks the label folder; True in only one process of the run.

    Raises:
        InputError: the label folder holds other files, or labels with other settings or of other images.
    """
    # This text is one of the settings. Labels can be resumed only if all settings are the same, so the text must not
    # contain percentages, which may vary.
    accepted = "the teachers' answers did not fit the class folders when the labels were made"
    settings: dict[str, Any] = {
        **({"labels_accepted": accepted} if found.labels_accepted else {}),
        "classes": names[: max(folder.targets) + 1],
        "teachers": teachers.described,
        "ensemble": teachers.rule,
        # no entries for equal weights and running statistics, so that label files are the same as in earlier releases
        **({} if teachers.shares is None else {"ensemble_weights": list(teachers.shares)}),
        **({"bssl": True} if teachers.parts else {}),
        "stem": alone(config.stem or ("standard",)),
        "arithmetic": str(teachers.precision),
        "replay": replay,
        "mean": list(found.mean),
        "std": list(found.std),
        # no entry for 8-bit images, so that their label files are the same as those of earlier releases
        **({} if found.train_values == "bytes" else {"pixel_values": found.train_values}),
        "class_names": digest_of_names(folder.classes),
        **({} if teachers.kept is None else {"teacher_classes": teachers.kept.tolist()}),
    }
    if config.format == "tar":
        dtype = torch.float16 if codec.bits == 16 else torch.float32
        # only for tar labels, because packed labels store the input size as part of their view policy
        settings["input_size"] = found.input_size
        return TarWriter(config.fkd_path, dtype, leads=leads, image_digests=images.digests, settings=settings)
    manifest = make_manifest(
        codec,
        num_images=views.num_images,
        num_classes=teachers.num_classes(found.input_size),
        batch_size=config.batch_size,
        epochs=config.epochs,
        mix_type=views.policy.mix_type,
        has_index=config.views == "stored",
        settings=settings,
        policy=views.policy,
    )
    sizes = image_sizes(folder.samples) if config.views == "drawn" else None
    return PackedWriter(config.fkd_path, manifest, sizes, leads, images.digests, images.names)


def labelled(drawn: DrawnBatch, logits: torch.Tensor, sizes: torch.Tensor) -> BatchLabels:
    """Return the labels of one batch: the crops, flips and mixing of its views, and the teachers' logits.

    Args:
        drawn: views of the batch.
        logits: the teachers' logits, float32 [B, C].
        sizes: int64 [N, 2], (H, W) of every image in the folder.
    """
    return drawn.labelled(logits, sizes[drawn.index].tolist())


if __name__ == "__main__":
    sys.exit(run_script(main))
