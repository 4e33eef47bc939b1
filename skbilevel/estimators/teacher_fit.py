"""The teacher: a masked autoencoder that corrects a base where it has something to add.

It learns from copies of the table with further cells hidden. Some of the cells are hidden in all
copies and from the base as well: on them it is decided when to stop, and whether the corrections
are worth anything at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skbilevel.estimators.feature_dropout import masking
from skbilevel.estimators.imputation_base import Base
from skbilevel.models.masked_autoencoder import MaskedAutoencoder
from skbilevel.numerics.parameters import from_numpy, to_numpy
from skbilevel.numerics.row_groups import slices
from skbilevel.objectives.bilevel_imputation import Kind, Rows, label_loss, reconstruction_loss
from skbilevel.solvers.training import ParameterGroup, Schedule, train

# Networks see no value farther from the mean than this many standard deviations.
FARTHEST = 8.0
# Copies of the table: enough for this many rows, within these bounds.
_ROWS_OF_COPIES, _FEWEST_COPIES, _MOST_COPIES = 4000, 2, 8
BATCH_ROWS, _ROWS_AT_A_TIME = 256, 4096
_RATE, _WEIGHT_DECAY = 2e-3, 1e-4
# Held-out cells are looked at this often. Corrections that lower their error by a smaller
# share, or by fewer standard errors, are chance.
_STEPS_BETWEEN_LOOKS, _LEAST_GAIN, _STANDARD_ERRORS = 25, 0.01, 3.0
# Looks without a new least error after which no more is hoped for.
_PATIENCE = 6


class TeacherInputs(NamedTuple):
    """What a teacher sees of rows.

    Attributes
    ----------
    values, mask, base : Tensor of shape (n, d)
        0 at missing cells; 1 = observed; complete.
    """

    values: Tensor
    mask: Tensor
    base: Tensor

    def at(self, index: Tensor | slice) -> TeacherInputs:
        """Some of the rows."""
        return TeacherInputs(*(part[index] for part in self))


def teacher_inputs(Z: np.ndarray, filled: np.ndarray) -> TeacherInputs:
    """Of standardised rows (n, d) with NaN at missing cells, and the same rows complete."""
    mask = torch.from_numpy((~np.isnan(Z)).astype(np.float64))
    values, base = (torch.from_numpy(np.clip(part, -FARTHEST, FARTHEST)) for part in (Z, filled))
    return TeacherInputs(torch.nan_to_num(values), mask, base)


@torch.no_grad()
def corrections(teacher: MaskedAutoencoder, inputs: TeacherInputs) -> tuple[Tensor, Tensor]:
    """What a teacher adds to features (n, d) and outputs (n, q), without a graph; its layers hold
    few rows at a time."""
    parts = [teacher(*inputs.at(part)) for part in slices(len(inputs.mask), _ROWS_AT_A_TIME)]
    features, outputs = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(outputs)


@dataclass(frozen=True)
class Copies:
    """Rows of several copies of a table, one copy after the other.

    The first has no cells hidden but those that are hidden in all.

    Attributes
    ----------
    inputs : TeacherInputs
    truth : Tensor of shape (r, d)
        The values that were observed; 0 where none was.
    hidden : Tensor of shape (r, d)
        What the cells to learn from weigh; 0 for others.
    held_out : Tensor of shape (n, d)
        What the cells of the first copy to stop by weigh; 0 for others.
    rows : Tensor of shape (r,), int64
        Of the table.
    """

    inputs: TeacherInputs
    truth: Tensor
    hidden: Tensor
    held_out: Tensor
    rows: Tensor


def copies_of(
    Z: np.ndarray,
    base: Base,
    hidden: np.ndarray,
    odds: np.ndarray,
    mask_ratio: str | float,
    rng: np.random.RandomState,
) -> Copies:
    """Copies of a table.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        Standardised rows with NaN at missing cells.
    base : Base
        That has not seen the cells ``hidden``.
    hidden : ndarray of shape (n, d), bool
        Hidden in all copies; half of them, drawn at random, are held out.
    odds : ndarray of shape (n, d)
        What each cell weighs.
    mask_ratio : "mix" or float
    rng : RandomState
    """
    observed = ~np.isnan(Z)
    held_out = hidden & (rng.random_sample(Z.shape) < 0.5)
    n_copies = int(np.clip(_ROWS_OF_COPIES // len(Z), _FEWEST_COPIES, _MOST_COPIES))
    parts = []
    for number in range(n_copies):
        seen = observed & ~hidden
        if number:
            seen = masking(mask_ratio, seen, rng)
        shown = np.where(seen, Z, np.nan)
        learnt = (hidden if base.memorises else observed & ~seen) & ~held_out
        parts.append(
            (teacher_inputs(shown, base.completed(shown)), torch.from_numpy(learnt * odds))
        )
    inputs = TeacherInputs(
        *(torch.cat(each) for each in zip(*(part[0] for part in parts), strict=True))
    )
    truth = torch.nan_to_num(torch.from_numpy(np.clip(Z, -FARTHEST, FARTHEST)))
    return Copies(
        inputs,
        truth.repeat(n_copies, 1),
        torch.cat([part[1] for part in parts]),
        torch.from_numpy(held_out * odds),
        torch.arange(len(Z)).repeat(n_copies),
    )


@dataclass(frozen=True)
class Lessons:
    """What the reconstruction loss of a teacher is made of.

    Attributes
    ----------
    copies : Copies
    kind : Kind
    rows : Rows
        Of the table.
    label_base : Tensor of shape (n, q)
        Outputs of the base for the labels.
    learnt, held_out : Tensor of shape (n,)
        1 for the labelled rows to learn from, and for those to stop by.
    """

    copies: Copies
    kind: Kind
    rows: Rows
    label_base: Tensor
    learnt: Tensor
    held_out: Tensor

    def loss(self, teacher: MaskedAutoencoder, batch: Tensor) -> Tensor:
        """Eq. (5) for some rows of the copies."""
        copies = self.copies
        inputs = copies.inputs.at(batch)
        features, outputs = teacher(*inputs)
        cells = reconstruction_loss(
            inputs.base + features, copies.truth[batch], copies.hidden[batch], inputs.mask
        )
        return cells + self._label_loss(outputs, copies.rows[batch], self.learnt)

    def _label_loss(self, outputs: Tensor, rows: Tensor, counted: Tensor) -> Tensor:
        labelled = self.rows.at(rows)._replace(labelled=counted[rows])
        return label_loss(self.kind, self.label_base[rows] + outputs, labelled)

    @torch.no_grad()
    def held_out_errors(self, teacher: MaskedAutoencoder) -> tuple[Tensor, Tensor]:
        """Squared errors of the held-out cells of rows that lack no others but their own, (k,),
        times what they weigh, and the loss of the held-out labels."""
        counted = self.copies.held_out
        first = slice(len(counted))
        inputs = self.copies.inputs.at(first)
        features, outputs = corrections(teacher, inputs)
        errors = (inputs.base + features - self.copies.truth[first]).square()
        labels = self._label_loss(outputs, self.copies.rows[first], self.held_out)
        return (errors * counted)[counted > 0], labels

    def batches(self, rng: np.random.RandomState) -> Iterator[Tensor]:
        """All rows of the copies in random order, again and again."""
        while True:
            order = torch.from_numpy(rng.permutation(len(self.copies.rows)))
            yield from order.split(BATCH_ROWS)


def new_teacher(
    n_columns: int, n_targets: int, hidden: Sequence[int], seed: int
) -> MaskedAutoencoder:
    """A teacher that corrects nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    return MaskedAutoencoder(n_columns, n_targets, hidden, generator=generator)


def pretrained(
    teacher: MaskedAutoencoder,
    lessons: Lessons,
    n_steps: int,
    rng: np.random.RandomState,
) -> dict[str, list[float]]:
    """Train a teacher in place and leave it where held-out cells and labels were predicted best,
    of those looks at which cells gained: what labels alone have to gain is left to the students.

    Training ends early when six looks in a row have seen no new least error.

    Returns
    -------
    dict of str to list of float
        "pretraining", the mean loss between looks at what is held out, and "held_out", the error
        of its cells and labels, each relative to the base alone, at the start and at each look.
    """
    start = lessons.held_out_errors(teacher)
    looks = [_relative(start, start)]
    best, state = looks[0] - _LEAST_GAIN, to_numpy(teacher)
    n_looks = -(-n_steps // _STEPS_BETWEEN_LOOKS)
    n_batches = -(-n_steps // max(n_looks, 1))
    stream = lessons.batches(rng)

    def look(history: dict[str, list[float]]) -> bool:
        nonlocal best, state
        now = lessons.held_out_errors(teacher)
        looks.append(_relative(now, start))
        if looks[-1] < best and _is_evident(start[0] - now[0]):
            best, state = looks[-1], to_numpy(teacher)
        return len(looks) - int(np.argmin(looks)) > _PATIENCE

    result = train(
        lambda batch: lessons.loss(teacher, batch),
        lambda: islice(stream, n_batches),
        [ParameterGroup(list(teacher.parameters()), _WEIGHT_DECAY)],
        Schedule(n_looks, n_batches, _RATE, largest_norm=1.0),
        look,
    )
    from_numpy(teacher, state)
    return {"pretraining": result.history["loss"], "held_out": looks}


def _relative(now: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor]) -> float:
    """Errors of cells and of labels in those of the base, added; 1 each where there are none."""
    return _ratio(now[0].sum(), start[0].sum()) + _ratio(now[1], start[1])


def _is_evident(gains: Tensor) -> bool:
    """Whether cells (k,) gain on average, or there are none to tell."""
    if len(gains) < 2:
        return True
    return bool(gains.mean() > _STANDARD_ERRORS * gains.std() / len(gains) ** 0.5)


def _ratio(now: Tensor, before: Tensor) -> float:
    return float(now / before) if before > 0 else 1.0
