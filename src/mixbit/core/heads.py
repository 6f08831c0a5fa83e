"""Heads: what the numbers of one output of a model mean, as a distribution of answers, with its information and KL."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mixbit.core.errors import InvalidInput

#: Class number of a position without a label, as in torch's cross-entropy.
IGNORED = -100
#: How far the sum of probabilities may be from 1.
SUM_TOLERANCE = 1e-3
#: Smaller probabilities count as this one.
LEAST_PROBABILITY = 1e-8
#: Least unit of numbers, as a share of their root mean square.
LEAST_UNIT = 1e-2


@dataclass(frozen=True)
class Head:
    """What one output means.

    Attributes:
        name: Of the kind of output.
        form: The output as the model returns it, samples first -> [N, ..., C], the form that all below take; raises
            InvalidInput for a shape that does not fit.
        draw: (outputs, generator) -> scalar whose gradient by output n is a random vector with mean 0 and the Fisher
            information of sample n as covariance, averaged over the sample's positions.
        divergence: (reference, outputs) -> [N] KL divergence in nats, the mean of positions.
        channels: Outputs -> the dimension along which the scale of numbers may differ.
        answers: Outputs -> the top answer of every position; None where numbers are no choice among answers.
        right: (outputs, labels) -> right answers, and how many labels there are; raises InvalidInput for labels that
            are none; None where there are no answers.
        costs: Whether a difference costs anything; else only the answers are compared.
        fits: (outputs, labels) -> raises InvalidInput for labels that do not fit the outputs' shape.
        loss: (outputs, labels) -> mean loss in nats; raises InvalidInput for labels that do not fit.
    """

    name: str
    form: Callable[..., Tensor]
    draw: Callable[[Tensor, torch.Generator], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    fits: Callable[[Tensor, Tensor], object]
    channels: Callable[[Tensor], int]
    answers: Callable[[Tensor], Tensor] | None = None
    right: Callable[[Tensor, Tensor], tuple[int, int]] | None = None
    costs: bool = True


def last(_: Tensor) -> int:
    """The last dimension, of the forms of classes."""
    return -1


def first(_: Tensor) -> int:
    """The first dimension behind the samples."""
    return 1


def feature_maps(outputs: Tensor) -> int:
    """The first dimension behind the samples where outputs are maps, with two dimensions more; else the last."""
    return 1 if outputs.ndim > 3 else -1


def few_per_place(outputs: Tensor) -> int:
    """As `feature_maps`; of lists of places [N, A, B], the smaller of both: 4 coordinates of 8,400 boxes."""
    return 1 if outputs.ndim > 3 or (outputs.ndim == 3 and outputs.shape[1] < outputs.shape[2]) else -1


def fixed(axis: int, _: Tensor) -> int:
    """That axis."""
    return axis


# One of several classes


def classes(what: str, shape: str, axis: int, *, positions: bool | None = None) -> Head:
    """One class at each position: logits, logarithms of probabilities, or probabilities, which are told by their sum.

    `what` needs them and `shape` is theirs, for errors; `axis` is that of the classes; `positions`, whether there are
    any positions, or either where None.
    """
    form = partial(_form_classes, what, shape, axis, positions)
    return Head(
        "classes",
        form,
        _draw_categorical,
        _divergence_categorical,
        _loss_of_classes,
        check_classes,
        last,
        _top,
        _right_classes,
    )


def _form_classes(
    what: str, shape: str, axis: int, positions: bool | None, output: Tensor, *, probabilities: bool | None = None
) -> Tensor:
    if output.ndim < 2 or positions not in (None, output.ndim > 2) or output.shape[axis] < 2:
        given = list(output.shape)
        raise InvalidInput(f"{what} needs outputs {shape} with two classes or more, the model returns {given}")
    rows = output if output.ndim == 2 else output.movedim(axis, -1)
    probabilities = are_probabilities(rows) if probabilities is None else probabilities
    return _log(rows) if probabilities else rows


def decided(head: Head, output: Tensor) -> Head:
    """The head of classes, by this example of its output for logits alone or for probabilities alone."""
    rows = partial(head.form, probabilities=False)(output)
    return dataclasses.replace(head, form=partial(head.form, probabilities=are_probabilities(rows)))


def are_probabilities(rows: Tensor) -> bool:
    """Whether every row of the last dimension holds probabilities of two or more classes, whose sum is 1."""
    rows = rows.detach()
    if rows.shape[-1] < 2 or rows.numel() == 0 or bool((rows < 0).any()):
        return False
    return bool(((rows.sum(-1) - 1).abs() <= SUM_TOLERANCE).all())


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=LEAST_PROBABILITY).log()


def _top(outputs: Tensor) -> Tensor:
    return outputs.argmax(-1)


def _right_classes(outputs: Tensor, labels: Tensor) -> tuple[int, int]:
    labels = labels.to(outputs.device)
    check_classes(outputs, labels)
    return int((outputs.argmax(-1) == labels).sum()), int((labels != IGNORED).sum())


def _loss_of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    check_classes(outputs, labels)
    if (labels == IGNORED).all():
        raise InvalidInput(f"labels: a batch with none but {IGNORED}, which has no loss; leave it out")
    return functional.cross_entropy(outputs.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)


def check_classes(outputs: Tensor, labels: Tensor) -> None:
    """Raise InvalidInput unless there is a class number, or IGNORED, for every position of the outputs."""
    wanted, num_classes = outputs.shape[:-1], outputs.shape[-1]
    if labels.is_floating_point() or labels.is_complex() or labels.shape != wanted:
        given = f"{labels.dtype} {list(labels.shape)}"
        raise InvalidInput(f"labels: {given}; give whole class numbers {list(wanted)}, one a position")
    _check_range(labels, num_classes, 0)


def _check_range(labels: Tensor, num_classes: int, least: int) -> None:
    counted = labels[labels != IGNORED]
    low, high = (int(end) for end in counted.aminmax()) if counted.numel() else (least, least)
    if low < least or high >= num_classes:
        raise InvalidInput(
            f"labels: {low}..{high} found, but the model has classes {least}..{num_classes - 1}; number them so, and "
            f"write {IGNORED} where there is no label"
        )


def _draw_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, logits> with random v, E[v] = 0 and E[v v'] = diag(p) - p p', the Fisher information of the logits.

    That is the covariance of the gradient of -log p(y) when y is drawn from the model. With t the top class, r the
    other probabilities, s their sum, and random signs e, f,
    v = sum_k e_k sqrt(p_t p_k) (1_t - 1_k) + sqrt(s) sqrt(r) f - r <sqrt(r), f> / sqrt(s): first the pairs of the top
    class with each other one, then all pairs of the others. Signs reach every class with every draw, where a drawn
    label of a confident network is nearly always the top class and carries no gradient; and since one pair outweighs
    the others, the square of <v, x> varies little with the signs, for any x.
    Over P positions, whose draws are independent, v / sqrt(P): the mean of the positions' information.
    """
    p = logits.detach().softmax(-1)
    e, f = (torch.randint(0, 2, (2, *p.shape), generator=generator).to(p) * 2 - 1).unbind()
    top = p.argmax(-1, keepdim=True)
    rest = p.scatter(-1, top, 0)
    total = rest.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    with_top = e * (p.gather(-1, top) * rest).sqrt()
    v = -with_top + total.sqrt() * rest.sqrt() * f - rest * (rest.sqrt() * f).sum(-1, keepdim=True) / total.sqrt()
    v = v.scatter_add(-1, top, with_top.sum(-1, keepdim=True))
    return (v * logits).sum() / math.prod(logits.shape[1:-1]) ** 0.5


def _divergence_categorical(reference: Tensor, outputs: Tensor) -> Tensor:
    p, q = reference.log_softmax(-1), outputs.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).flatten(1).mean(1) if p.ndim > 2 else (p.exp() * (p - q)).sum(-1)


# Sequences of classes that are read by CTC


def sequences() -> Head:
    """[N, T, C] classes of every step, 0 of them the blank; labels are class numbers [N, S], IGNORED behind the end."""
    return Head(
        "sequences",
        partial(_form_classes, "ctc", "[N, T, C]", -1, True),
        _draw_categorical,
        _divergence_categorical,
        _loss_of_sequences,
        _check_sequences,
        last,
        _top,
        _right_sequences,
    )


def _right_sequences(outputs: Tensor, labels: Tensor) -> tuple[int, int]:
    """Greedily read sequences that are the labels': repeated classes count once, blanks not at all."""
    labels = labels.to(outputs.device)
    _check_sequences(outputs, labels)
    right = 0
    for steps, wanted in zip(outputs.argmax(-1), labels, strict=True):
        read = steps.unique_consecutive()
        right += int(torch.equal(read[read != 0], wanted[wanted != IGNORED].long()))
    return right, len(labels)


def _loss_of_sequences(outputs: Tensor, labels: Tensor) -> Tensor:
    """Graves et al. 2006, in nats; mean over samples."""
    _check_sequences(outputs, labels)
    lengths = (labels != IGNORED).sum(1)
    steps = torch.full_like(lengths, outputs.shape[1])
    logarithms = outputs.log_softmax(-1).transpose(0, 1)
    targets = labels.clamp(min=0).long()
    losses = functional.ctc_loss(logarithms, targets, steps, lengths, reduction="none", zero_infinity=True)
    return losses.mean()


def _check_sequences(outputs: Tensor, labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 2 or len(labels) != len(outputs):
        raise InvalidInput(
            f"labels: {labels.dtype} {list(labels.shape)}; give class numbers [{len(outputs)}, S] of each sequence, "
            f"{IGNORED} behind its end"
        )
    _check_range(labels, outputs.shape[-1], 1)


# Independent yes or no


def yes_or_no(*, probabilities: bool = False) -> Head:
    """[N, ...] independent answers: logits of yes, or its probabilities; labels are 0 or 1, of the same shape."""
    return Head(
        "yes or no",
        _form_probabilities if probabilities else _form_numbers,
        _draw_bernoulli,
        _divergence_bernoulli,
        _loss_of_yes_or_no,
        _zeros_and_ones,
        feature_maps,
        _is_yes,
        _right_yes_or_no,
    )


def _form_probabilities(output: Tensor) -> Tensor:
    return torch.logit(_form_numbers(output), eps=LEAST_PROBABILITY)


def _is_yes(outputs: Tensor) -> Tensor:
    return outputs > 0


def _right_yes_or_no(outputs: Tensor, labels: Tensor) -> tuple[int, int]:
    wanted = _zeros_and_ones(outputs, labels)
    return int(((outputs > 0) == (wanted > 0.5)).sum()), wanted.numel()


def _loss_of_yes_or_no(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, _zeros_and_ones(outputs, labels))


def _zeros_and_ones(outputs: Tensor, labels: Tensor) -> Tensor:
    if labels.is_complex() or labels.shape[:1] != outputs.shape[:1] or labels.numel() != outputs.numel():
        raise InvalidInput(f"labels: {labels.dtype} {list(labels.shape)}; give 0 or 1 for {list(outputs.shape)}")
    wanted = labels.to(outputs).reshape(outputs.shape)
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise InvalidInput("labels: numbers outside 0..1; give 0 or 1 for each answer")
    return wanted


def _draw_bernoulli(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, logits>, v = e sqrt(p (1 - p)) / sqrt(M) with random signs e, for M answers a sample."""
    p = logits.detach().sigmoid()
    v = (p * (1 - p)).sqrt() * _signs(logits, generator)
    return (v * logits).sum() / math.prod(logits.shape[1:]) ** 0.5


def _divergence_bernoulli(reference: Tensor, outputs: Tensor) -> Tensor:
    p = reference.sigmoid()
    yes = p * (functional.logsigmoid(reference) - functional.logsigmoid(outputs))
    no = (1 - p) * (functional.logsigmoid(-reference) - functional.logsigmoid(-outputs))
    return (yes + no).flatten(1).mean(1)


# Numbers


def regression() -> Head:
    """Means of Gaussians with variance 1, whose divergences add up over all numbers of a sample."""
    return Head(
        "regression",
        _form_numbers,
        _draw_gaussian,
        _divergence_gaussian,
        _loss_of_numbers,
        _check_numbers,
        feature_maps,
    )


def numbers(channels: Callable[[Tensor], int], unit: Tensor | None = None) -> Head:
    """Means of Gaussians whose deviation is the unit [C] of their channel; the mean over all numbers of a sample.

    An error of a tenth of every channel's spread costs 0.005 nats, whatever the size of the output. Without a unit, it
    is the spread of the reference, or of what is drawn from.
    """
    return Head(
        "numbers",
        _form_numbers,
        partial(_draw_in_units, channels, unit),
        partial(_divergence_in_units, channels, unit),
        _no_labels,
        _no_labels,
        channels,
    )


def whole_numbers() -> Head:
    """Integers or truth values: they are compared, and have no gradient."""
    return dataclasses.replace(regression(), name="whole numbers", answers=_themselves, costs=False)


def moments(outputs: Tensor, axis: int) -> Tensor:
    """[3, C] float64: how many finite numbers each channel holds, their sum, and the sum of their squares."""
    rows = outputs.detach().movedim(axis, -1).flatten(0, -2).double()
    finite = rows.isfinite()
    rows = torch.where(finite, rows, 0)
    return torch.stack([finite.double().sum(0), rows.sum(0), rows.square().sum(0)])


def spread(moments: Tensor) -> Tensor:
    """[C] the standard deviation of every channel, but LEAST_UNIT of its root mean square or more.

    A channel of zeros takes LEAST_UNIT of that of all channels, or 1 where all are zeros.
    """
    count, total, squares = moments
    power = squares / count.clamp(min=1)
    variance = power - (total / count.clamp(min=1)).square()
    deviations = torch.maximum(variance, LEAST_UNIT**2 * power).sqrt()
    least = LEAST_UNIT * float(power.mean().sqrt())
    return torch.where(deviations > 0, deviations, least if least > 0 else 1.0)


def along(unit: Tensor, outputs: Tensor, axis: int) -> Tensor:
    """The unit [C], shaped to act on the outputs."""
    shape = [1] * outputs.ndim
    shape[axis] = -1
    return unit.to(outputs).reshape(shape)


def _form_numbers(output: Tensor) -> Tensor:
    return output if output.ndim > 1 else output.unsqueeze(1)


def _signs(outputs: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1


def _draw_gaussian(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, outputs> with random signs v: E[v v'] = 1 is the Fisher information of a unit Gaussian's mean."""
    flat = outputs.flatten(1)
    return (_signs(flat, generator) * flat).sum()


def _divergence_gaussian(reference: Tensor, outputs: Tensor) -> Tensor:
    return 0.5 * (reference.flatten(1) - outputs.flatten(1)).square().sum(1)


def _loss_of_numbers(outputs: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance, mean over samples."""
    _check_numbers(outputs, labels)
    outputs, labels = outputs.flatten(1), labels.to(outputs)
    return 0.5 * (outputs - labels.reshape(outputs.shape)).square().sum(1).mean()


def _check_numbers(outputs: Tensor, labels: Tensor) -> None:
    if labels.shape[:1] != outputs.shape[:1] or labels.numel() != outputs.numel():
        raise InvalidInput(
            f"labels: {list(labels.shape)} for outputs {list(outputs.shape)}; give a number for each of theirs"
        )
    if labels.is_complex() or not torch.isfinite(labels).all():
        raise InvalidInput("labels: complex numbers, NaN or inf; regression needs finite real ones")


def _draw_in_units(
    channels: Callable[[Tensor], int], unit: Tensor | None, outputs: Tensor, generator: torch.Generator
) -> Tensor:
    axis = channels(outputs)
    unit = spread(moments(outputs, axis)) if unit is None else unit
    v = _signs(outputs, generator) / along(unit, outputs, axis)
    counted = torch.where(outputs.isfinite(), outputs, 0)  # a mask of -inf is the same in every network
    return (v * counted).sum() / math.prod(outputs.shape[1:]) ** 0.5


def _divergence_in_units(
    channels: Callable[[Tensor], int], unit: Tensor | None, reference: Tensor, outputs: Tensor
) -> Tensor:
    axis = channels(reference)
    unit = spread(moments(reference, axis)) if unit is None else unit
    same = reference.isinf() & (reference == outputs)  # as in masks; infinities have no difference
    difference = torch.where(same, 0, reference - outputs)
    return 0.5 * (difference / along(unit, reference, axis)).flatten(1).square().mean(1)


def _no_labels(_outputs: Tensor, _labels: Tensor) -> Tensor:
    raise InvalidInput("labels: the task knows no meaning of this output; take the task multi, which names outputs")


def _themselves(outputs: Tensor) -> Tensor:
    return outputs
