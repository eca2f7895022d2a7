"""Encode and decode the logits of packed labels, with fewer bits per value or only the k largest logits of a row."""

from dataclasses import dataclass

import torch

from utils.labels.class_ids import code_bytes
from utils.labels.packed_tensors import Tensors
from utils.labels.types import Answers, TopK, unweighted, values_of
from utils.system.errors import InputError

HALF_MAX = torch.finfo(torch.float16).max
# replaces the log of a probability of 0; it is lower than the log of any positive float16
LOG_FLOOR = -17.0
HALF_TINY = 2.0**-24  # the smallest positive float16


@dataclass(frozen=True)
class Codec:
    """The encoding of labels.

    Attributes:
        bits: bits per value. 32 and 16 bits hold floats. 8 and 4 bits hold integer levels between the minimum and
            the maximum of each column, or of each row if only the k largest logits are kept.
        keep_topk: number of logits kept per image, or None to keep all.
        views: `stored`: the files hold crops, flips and mixes. `drawn`: the files hold none. When labels are read, the
            same crops, flips and mixes are drawn again with the policy in the manifest.
    """

    bits: int = 16
    keep_topk: int | None = None
    views: str = "stored"

    def bytes_per_image(self, num_classes: int) -> float:
        """Return the approximate number of bytes that one image's labels take per epoch."""
        kept = min(self.keep_topk or num_classes, num_classes)
        set_of_classes = sum(code_bytes(kept, num_classes)) + 8 if kept < num_classes else 0
        return kept * self.bits / 8 + set_of_classes + (21 if self.views == "stored" else 0)

    def encode_logs(self, answers: Answers) -> Tensors:
        """Encode log probabilities [N, C]; return the tensors to store.

        The tensors hold probabilities if `holds_probabilities` is true, and logs of probabilities otherwise.
        """
        logs = values_of(answers)
        if self.holds_probabilities(logs.shape[1]):
            return {"logits": logs.exp().to(torch.float16 if self.bits == 16 else torch.float32)}
        return self.encode(logs.clamp_min(LOG_FLOOR))

    def holds_probabilities(self, num_classes: int) -> bool:
        """Return True if probabilities (HALD's labels) are stored as they are, False if their logs are stored."""
        return self.bits >= 16 and (self.keep_topk or num_classes) >= num_classes

    def encode(self, answers: Answers) -> Tensors:
        """Encode logits, float [N, C] or a `TopK`; return the tensors by name, before `shrink` converts them.

        Raises:
            InputError: a number is too large to be stored with `bits` bits.
        """
        answers = unweighted(answers)
        if isinstance(answers, TopK):
            answers = keep_fewer(answers, self.keep_topk)
        elif self.keep_topk and self.keep_topk < answers.shape[1]:
            answers = keep_largest(answers.float(), self.keep_topk)
        else:
            return self._encode_columns(answers.float())
        classes, order = answers.classes.sort(dim=1)
        tensors = {"classes": classes} | self._encode_rows(answers.values.float().gather(1, order))
        if answers.rest is None:
            return tensors
        if self.bits < 32:
            refuse_beyond_half(answers.rest, "mean or variance of the logits that are not kept")
        return tensors | {"rest": answers.rest}

    def _encode_columns(self, values: torch.Tensor) -> Tensors:
        """Encode values [N, C] as floats, or as integer levels between the minimum and the maximum of each column."""
        if self.bits >= 16:
            return self._encode_floats(values)
        low, high = values.amin(dim=0), values.amax(dim=0)
        step = (high - low).clamp_min(1e-6) / (2**self.bits - 1)
        if step.isinf().any():
            raise InputError(f"logits of the labels lie too far apart for --bits {self.bits}; use --bits 32")
        return {"levels": ((values - low) / step).round().to(torch.uint8), "range": torch.stack([low, step])}

    def _encode_floats(self, values: torch.Tensor) -> Tensors:
        """Convert values of any shape to float16 if `bits` is 16, else to float32; return {"logits": values}."""
        if self.bits == 16:
            refuse_beyond_half(values, "logit")
        return {"logits": values.to(torch.float16 if self.bits == 16 else torch.float32)}

    def _encode_rows(self, values: torch.Tensor) -> Tensors:
        """Encode values [N, k] as floats, or as integer levels between the minimum and the maximum of each row.

        The minimum of a row and the step between two levels are rounded to half precision before the levels are
        computed.
        """
        if self.bits >= 16:
            return self._encode_floats(values)
        top = 2**self.bits - 1
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        refuse_beyond_half(low, "logit")
        low = low.half().float()
        refuse_beyond_half((high - low) / top, "step between levels")
        step = ((high - low) / top).half().float().clamp_min(HALF_TINY)
        levels = ((values - low) / step).round().clamp(0, top).to(torch.uint8)
        return {"levels": levels, "spans": torch.cat([low, step], dim=1)}

    def decode(self, tensors: Tensors, rows: slice) -> Answers:
        """Decode the logits of some rows: return a tensor [B, C], or a `TopK` if only the k largest logits are stored.

        Args:
            tensors: tensors of an epoch, from `expand`.
            rows: slice that selects B rows.
        """
        if self.bits >= 16:
            values = tensors["logits"][rows]
        elif "spans" in tensors:
            low, step = tensors["spans"][rows].split(1, dim=1)  # both have shape [B, 1]
            values = torch.addcmul(low, tensors["levels"][rows].float(), step)
        else:
            low, step = tensors["range"]
            values = low + step * tensors["levels"][rows]
        if "classes" not in tensors:
            return values
        rest = tensors["rest"][rows] if "rest" in tensors else None
        return TopK(values, tensors["classes"][rows].long(), rest)


def refuse_beyond_half(values: torch.Tensor, what: str, remedy: str = "use --bits 32, without --use-fp16") -> None:
    """Raise InputError if a number would become infinite in half precision.

    Args:
        values: numbers that will be stored in half precision.
        what: name of one of these numbers in the error message, for example `logit`.
        remedy: advice at the end of the error message.
    """
    if values.half().isinf().any():
        largest = values.abs().max().item()
        raise InputError(
            f"a {what} of the labels is {largest:.6g} in size, and the largest number of half precision, in which it "
            f"would be stored, is {HALF_MAX:.0f}; {remedy}"
        )


def keep_largest(logits: torch.Tensor, k: int) -> TopK:
    """Return the `TopK` of the k largest logits in each row of `logits`, float32 [N, C].

    The `TopK` also holds mean and variance of the other logits of each row.
    """
    values, classes = logits.topk(k, dim=1)
    others = logits.scatter(1, classes, float("nan"))  # [N, C], with NaN in place of the k largest logits
    mean = others.nanmean(dim=1)
    variance = (others - mean[:, None]).square().nanmean(dim=1)
    return TopK(values, classes, torch.stack([mean, variance], dim=1))


def keep_fewer(answers: TopK, k: int | None) -> TopK:
    """Reduce a `TopK` to the k largest logits of each row. Change nothing if k is None or rows have at most k logits.

    A reduced `TopK` no longer holds mean and variance of the other logits.
    """
    if k is None or k >= answers.values.shape[1]:
        return answers
    values, places = answers.values.float().topk(k, dim=1)
    return TopK(values, answers.classes.gather(1, places), None)
