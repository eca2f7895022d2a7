"""Print a table of the demo's results: top-1 of the teacher and of two students.

python demo/table.py demo/work
"""

import json
import sys
from pathlib import Path


def main(work):
    """Print the top-1 of the teacher, the student trained on FKD labels and the student trained on hard labels."""
    work = Path(work)
    teacher = json.loads((work / "teacher.json").read_text())["top1"]
    fkd, hard = (json.loads((work / run / "summary.json").read_text()) for run in ("student_fkd", "student_hard"))
    images = fkd["labels"]["num_images"]
    print()
    print("ResNet-18 on digits, 32 px                        top-1, last epoch")
    print(f"teacher, hard labels of 1,000 training images      {teacher:6.2f} %")
    print(f"student, FKD labels of {images:>5} images               {fkd['last']['top1']:6.2f} %")
    print(f"student, hard labels of {images:>4} images               {hard['last']['top1']:6.2f} %")


if __name__ == "__main__":
    main(sys.argv[1])
