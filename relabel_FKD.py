"""Write FKD soft labels: show teachers every view that students will be trained on, store their answers.

    python relabel_FKD.py --data DISTILLED -a resnet18 --checkpoint TEACHER.pth -b 50 --epochs 300 \
        --mix-type cutmix --use-fp16 --fkd-path LABELS

    python relabel_FKD.py --data DISTILLED --preset r50 …        PRISM's four teachers, its ensemble rule
    python relabel_FKD.py … --bits 8 --keep-topk 100 --views drawn      smaller labels
    python relabel_FKD.py … --format tar                         files that SRe2L's and PRISM's code reads
    torchrun --nproc_per_node 4 relabel_FKD.py …                 epochs distributed over processes, the same bytes

Views are a pure function of (--fkd-seed, epoch, batch), so the number of workers does not matter. If a
call was killed, repeat it: packed labels are resumed at the first unfinished epoch and end with the same
bytes. Images are visited in the order of the sampler in SRe2L's and PRISM's code.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils.config import Findings, RelabelConfig, resolve_views
from utils.data.device import DeviceBatches
from utils.data.folders import ImageSet, image_sizes, open_folder
from utils.data.identity import KnownImages, know_images
from utils.data.preview import Preview
from utils.data.workers import ViewDataset
from utils.labels.packed import PackedWriter, digests_of_started
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import digest_of_names, make_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnBatch, DrawnViews
from utils.run import preflight
from utils.run.loading import batch_class, normalise_for, plan_images
from utils.run.teacher_check import check_started
from utils.system.log import log, progress_bar
from utils.system.process import run_script
from utils.training.teachers import Ensemble


def main(argv: Sequence[str] | None = None) -> None:
    """Check settings, images and teachers; write the teachers' answers to every view."""
    config = RelabelConfig.parse(argv)
    world, precision, found = preflight.begin(config)
    found = resolve_views(config, found, {})

    # run all checks before hours of labelling are spent
    folder = open_folder(config.data, "--data")
    preflight.warn_of_folder_order(folder.classes)
    preflight.check_images(folder.samples)
    policy = preflight.view_policy(config, found)
    views = DrawnViews(policy, len(folder.samples), config.batch_size)
    names, files, weights, rule = config.teachers()
    preflight.warn_of_last_batch(len(folder.samples), config.batch_size)
    torch.backends.cudnn.benchmark = False  # autotuned algorithms may differ between processes, and so the bytes
    teachers = Ensemble(names, files, rule, precision, config.stem, weights=weights, input_size=found.input_size)
    teachers.refuse_fewer_classes(len(folder.classes), f"--data {config.data}", found.input_size)
    num_classes = teachers.num_classes(found.input_size)
    classes = preflight.number_relabelled(config, folder, num_classes)
    normalise = normalise_for(found, precision)
    # a second `DrawnViews`, because a loader thread may read the dataset's while this one reads `views`
    dataset = ViewDataset(folder.samples, DrawnViews(policy, len(folder.samples), config.batch_size), found.input_size)
    answers, found = preflight.report_live_agreement(config, found, dataset, 0, normalise, teachers, classes, world)
    codec = Codec(config.bits or 32, config.keep_topk, config.views)
    codec.encode(answers)  # a trial: raises if the codec cannot hold such answers
    if config.dry_run:
        Preview(dataset, 0, normalise, teachers).draw(Path(f"{config.fkd_path}-views.png"), classes)
        log.info("dry run: everything is in place, nothing was labelled; look at %s-views.png", config.fkd_path)
        return

    # open a new label store, or resume a started one
    resident = plan_images(config.loader, folder.samples, precision.device, found.workers, world)
    kind = batch_class(resident, precision.device)
    replay = "on the device" if kind is DeviceBatches else None  # pixels differ in bits from PIL's
    images = know_images(config.data, folder.samples, found.workers, digests_of_started(config.fkd_path), world)
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

    # show the teachers every view of this rank's epochs, and write their answers
    todo = todo[world.rank :: world.size]
    if todo:
        batches = kind(dataset, todo, normalise, found.workers, precision.device)
        sizes = image_sizes(folder.samples).long()  # [N, 2], (H, W)
        show_progress = not config.no_progress and world.is_main
        for epoch in todo:
            stream = progress_bar(batches.epoch(epoch), f"epoch {epoch}", views.batches_per_epoch, show_progress)
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
    """Return the label writer for --format; resume a started packed store if its settings and images are the same.

    The process with `leads` prepares and checks the folder. `replay` is "on the device", or None if PIL replays the
    views. `names` are the names of the classes, in the order of the teachers' outputs.
    """
    # a fixed text without figures, because a store is only resumed with equal settings
    accepted = "the teachers' answers did not fit the class folders when the labels were made"
    settings: dict[str, Any] = {
        **({"labels_accepted": accepted} if found.labels_accepted else {}),
        "classes": names[: max(folder.targets) + 1],
        "teachers": teachers.described,
        "ensemble": teachers.rule,
        "stem": config.stem,
        "arithmetic": str(teachers.precision),
        "replay": replay,
        "mean": list(found.mean),
        "std": list(found.std),
        "class_names": digest_of_names(folder.classes),
    }
    if config.format == "tar":
        dtype = torch.float16 if codec.bits == 16 else torch.float32
        settings["input_size"] = found.input_size  # packed labels have it in their view policy
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
    """Return a batch's labels, from its views, the logits [B, C] and `sizes` int64 [N, 2], (H, W) of all images."""
    return drawn.labelled(logits, sizes[drawn.index].tolist())


if __name__ == "__main__":
    sys.exit(run_script(main))
