"""Writes run folders as training leaves them, with any settings and figures, for the tests of reports."""

import json

EPOCHS = 4
LOSS = {"HL": "ce", "SL": "mse_gt", "SL+KD": "mse_gt"}
DIALECT = {"HL": "hard labels", "SL": "packed", "SL+KD": "live teacher"}


def make_run(
    root,
    name,
    top1,
    seed=0,
    regime="SL",
    images="distilled",
    model="resnet18",
    commit="c0ffee",
    validation=None,
    facts=None,
    device_name=None,
    **changed,
):
    """Write a run folder as training leaves it; `changed` are settings, `facts` describe its labels."""
    folder = root / name
    folder.mkdir(parents=True)
    args = {"model": model, "stem": "standard", "seed": seed, "epochs": EPOCHS, "loss_type": LOSS[regime]}
    args |= {
        "train_dir": f"data/{images}",
        "train_images": "n",
        "labels": images if regime == "SL" else None,
        **changed,
    }
    last = {"epoch": EPOCHS - 1, "top1": top1, "top5": 99.0, "loss": 0.5}
    summary = {
        **{"last": last, "best": last | {"top1": top1 + 1, "note": "picked on the validation set"}},
        **{"epochs_done": EPOCHS, "train_images_per_second": 100.0, "seconds": 7200.0, "args": args},
        **{"labels": {"dialect": DIALECT[regime], "bytes": 5000}, "versions": {"torch": "2.15.0"}},
        **{"images": {"bytes": 140000, "digest": images, "folder": args["train_dir"]}, "git_commit": commit},
    }
    if validation:
        summary["validation"] = {"digest": validation}
    summary["labels"] |= facts or {}
    summary["versions"] |= {"device_name": device_name} if device_name else {}
    rows = "".join(f"{e},{top1 if e == EPOCHS - 1 else 20 + e}\n" for e in range(0, EPOCHS))
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "metrics.csv").write_text(f"epoch,val_top1\n{rows}")
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
