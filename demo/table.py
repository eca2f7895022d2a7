"""Print a table of the demo's results: top-1 of the teacher and of two students.

python demo/table.py demo/work
"""

import json
import sys
from pathlib import Path


def main(work):
    """Print the top-1 of the teacher, the student trained on FKD labels and the student trained on class labels."""
    work = Path(work)
    teacher = json.loads((work / "teacher.json").read_text())["top1"]
    fkd, hard = (json.loads((work / run / "summary.json").read_text()) for run in ("student_fkd", "student_hard"))
    images = fkd["labels"]["num_images"]
    rows = [
        ("ResNet-18 on scikit-learn's digits, 32 px", "top-1, last epoch"),
        ("teacher, trained on 1,000 images with class labels", f"{teacher:.2f} %"),
        (f"student, trained on {images} images with FKD labels", f"{fkd['last']['top1']:.2f} %"),
        (f"student, trained on the same {images} images with class labels", f"{hard['last']['top1']:.2f} %"),
    ]
    print()
    for name, value in rows:
        print(f"{name:60} {value:>17}")


if __name__ == "__main__":
    main(sys.argv[1])
