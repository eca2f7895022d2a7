"""Write FKD soft labels: show a teacher every view that students will be trained on, and store its answers.

    python relabel_FKD.py --data DISTILLED -a resnet18 --checkpoint TEACHER.pth -b 50 --epochs 300 \
        --mix-type cutmix --use-fp16 --fkd-path LABELS

Views are drawn as a pure function of (--fkd-seed, epoch, batch): the number of workers does not
matter, and a second call writes the same files. Images are visited in the order that the reference's
sampler gives, and each row also stores its image index (the 7-item dialect of PRISM and G-VBSM).
"""

import sys

import torch

from utils import arguments, tracking
from utils.augment import Normalise, mix
from utils.data import ViewDataset, guarded, open_folder, view_loader
from utils.engine import Precision, pick_device
from utils.errors import InputError, run_script
from utils.labels import BatchLabels, DrawnViews, TarWriter
from utils.models import build_teacher
from utils.tracking import log


def parse(argv):
    """Parse the command line."""
    parser = arguments.Parser("Write FKD soft labels with a teacher.")
    arguments.add_relabel_arguments(parser)
    arguments.add_device_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Run the phases: parse, preflight, build, loop."""
    args = parse(argv)
    tracking.start_log()
    device = pick_device(args.device)
    precision = Precision(args.precision, device)
    folder = open_folder(args.data, "--data")
    policy = arguments.view_policy(args)
    views = DrawnViews(policy, len(folder.samples), args.batch_size)
    writer = TarWriter(args.fkd_path, args.use_fp16)

    teacher = build_teacher(args.arch, args.checkpoint, args.stem)
    teacher = teacher.to(device, memory_format=precision.memory_format)
    normalise = Normalise(args.mean, args.std, device, precision.memory_format)
    dataset = ViewDataset(folder.samples, views, args.input_size)
    loader = view_loader(dataset, range(args.epochs), args.workers, device)

    total = args.epochs * views.batches_per_epoch
    bar = tracking.progress_bar(guarded(loader), "relabel", total, not args.no_progress)
    for number, item in enumerate(bar):
        epoch, batch = divmod(number, views.batches_per_epoch)
        writer.write(epoch, batch, answer(item, teacher, normalise, precision))
    log.info(
        "%d images x %d epochs of %s labels in %s", len(folder.samples), args.epochs, policy.mix_type, args.fkd_path
    )


@torch.no_grad()
def answer(item, teacher, normalise, precision):
    """Mix the views of one loader item and ask the teacher: the `BatchLabels` to store."""
    (views, _, coords, flips, index), mix_index, mix_lam, mix_bbox, _ = item
    images = mix(normalise(views.to(precision.device)), mix_index, mix_lam, mix_bbox)
    with precision.autocast():
        logits = teacher(images)
    logits = logits.float().cpu()
    if not logits.isfinite().all():
        raise InputError("--arch: the teacher's answers are not finite; check its weights, or use --precision fp32")
    return BatchLabels(coords, flips, mix_index, mix_lam, mix_bbox, logits, index)


if __name__ == "__main__":
    sys.exit(run_script(main))
