"""The closed form: erase the forgotten classes' subspace from the feature that the head reads.

LEACE (Belrose et al., *LEACE: Perfect linear concept erasure in closed form*, NeurIPS 2023) takes
all affine edits after which no linear classifier can tell the erased classes better than by chance.
Of these it is the one that moves the features least. D (d, k) holds the differences between the
forgotten classes' means and the retained mean mu. S (d, d) is the covariance of the features.

    U = orthonormal basis of span( S^-1/2 D ),   A = U^T S^-1/2,   B = S^1/2 U
    e' = e - B A (e - mu) + shift

BA is the projection onto span(D) along the directions that are uncorrelated with the classes.
Afterwards the forgotten classes' means coincide with mu. The fit needs no gradients and no retained
images, only their statistics, which are cached.

Every class has the same weight in mu and in the between-class part of S, however few images it has.
The within-class part is pooled over all images. So D doesn't depend on how many forget images there
are. mu is the *retained* mean: the edit doesn't move it.

The theorem holds for the fitted features. On new images the head's row of a forgotten class still
wins now and then (ORL faces: 3 to 10 %). `shift` prevents that: it is the smallest constant move
that lowers the forgotten rows' readings far enough below the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.erasure.edit import MAX_RANK, LowRankEdit
from forgetting.erasure.statistics import FeatureStatistics, merged, without
from forgetting.errors import TargetError, TrainingError
from forgetting.models.face_transformer import CosineHead

SHRINKAGE = 0.01
MARGIN = 4.0
# In standard deviations of the whitened features. A smaller difference of means is rounding.
_LEAST_DIFFERENCE = 1e-6
_DRAWS = 1024
# What the length of the shift costs, against a change of the retained rows' readings.
_SHIFT_RIDGE = 0.1

Rows = tuple[Tensor, Tensor]


def fit_edit(
    retained: FeatureStatistics,
    forget: FeatureStatistics,
    *,
    head: nn.Module | None,
    earlier: Sequence[int] = (),
    shrinkage: float = SHRINKAGE,
    margin: float = MARGIN,
    most: int | None = None,
) -> LowRankEdit:
    """Fit the erasure of all classes of `forget`.

    Args:
        retained: Statistics of retained images, cached or fresh. Classes in `forget` and
            `earlier` are taken out of them first.
        forget: Statistics of the forget images.
        head: The head that reads the feature, linear or cosine. It isn't changed. None means that
            no head reads it (an embedding service): then the shift is zero.
        earlier: Labels that earlier tasks forgot. The shift keeps their rows low too.
        shrinkage: gamma in S <- (1 - gamma) S + gamma tr(S) / d I, in (0, 1].
        margin: How far a forgotten row stays below the best other row, in standard deviations of
            its reading on features without any class.
        most: Highest rank. The directions in which the classes differ most are erased. None
            erases all of them; LEACE's theorem needs that.

    Returns:
        An erasure in float32. Its rank k is the number of forgotten classes, or less if their
        differences from the retained mean are linearly dependent.

    Raises:
        TrainingError: k isn't below the feature's width d (nothing would be left), k is above
            `MAX_RANK`, there are fewer than two retained classes, the width or the shrinkage is
            wrong, or there is no difference to erase.
        TargetError: The head is neither linear nor cosine, or reads another width.
        DataError: No retained class is left.
    """
    gone = (*forget.labels, *earlier)
    kept = without(retained, gone)
    _check(kept, forget, shrinkage=shrinkage, most=most)
    both = merged(kept, forget)
    mean = kept.mean
    difference = (forget.means - mean).T  # (d, k)
    root, inverse_root = _roots(_covariance(both, shrinkage=shrinkage))
    u, strength, _ = torch.linalg.svd(inverse_root @ difference, full_matrices=False)
    if float(strength[0]) <= _LEAST_DIFFERENCE:
        raise TrainingError(
            "the forgotten classes' mean features are those of the retained ones: there is no "
            "difference to erase"
        )
    u = u[:, strength > _LEAST_DIFFERENCE][:, :most]
    a, b = u.T @ inverse_root, root @ u  # (k, d), (d, k)
    shift = torch.zeros_like(mean)
    if head is not None:
        left = torch.eye(len(mean), dtype=torch.float64) - b @ a
        rows = _head_rows(head, width=both.width)
        shift = _shift(
            rows, gone=gone, mean=mean, within=left @ both.within @ left.T, margin=margin
        )
    return LowRankEdit(a.float(), b.float(), mean.float(), shift.float())


def _check(
    kept: FeatureStatistics, forget: FeatureStatistics, *, shrinkage: float, most: int | None
) -> None:
    rank, width = min(len(forget.labels), most or MAX_RANK + 1), forget.width
    if kept.width != width:
        raise TrainingError(
            f"retained features have width {kept.width}, forget features {width}; both must come "
            "from the same model"
        )
    if len(kept.labels) < 2:
        raise TrainingError(
            f"expected statistics of at least 2 retained classes, found {len(kept.labels)}"
        )
    if rank >= width:
        raise TrainingError(
            f"{rank} classes can't be erased from a feature of width {width}: nothing would be "
            "left; forget fewer at once, or train an adapter"
        )
    if rank > MAX_RANK:
        raise TrainingError(
            f"{rank} classes at once are more than the closed form's {MAX_RANK}; forget them in "
            "several tasks"
        )
    if not 0 < shrinkage <= 1:
        raise TrainingError(f"shrinkage {shrinkage} is not in (0, 1]")


def _covariance(both: FeatureStatistics, *, shrinkage: float) -> Tensor:
    """S (d, d): the pooled covariance within classes, plus that of the class means."""
    spread = both.means - both.mean
    s = both.within + spread.T @ spread / len(spread)  # (d, c) @ (c, d) -> (d, d)
    ridge = s.trace() / len(s) * torch.eye(len(s), dtype=s.dtype)
    return (1 - shrinkage) * s + shrinkage * ridge


def _roots(s: Tensor) -> Rows:
    """S^1/2 and S^-1/2."""
    values, vectors = torch.linalg.eigh(s)
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def _head_rows(head: nn.Module, *, width: int) -> Rows:
    """Weight (c, d) and bias (c,) for which the head's answer is the arg max of W e + b.

    A cosine head divides all readings by the same |e|, so its unit rows give the same answer.
    """
    if not isinstance(head, nn.Linear) or type(head) not in (nn.Linear, CosineHead):
        raise TargetError(f"expected a linear or a cosine head, found {type(head).__name__}")
    weight = head.weight.detach().double().cpu()
    if weight.shape[1] != width:
        raise TargetError(f"the head reads {weight.shape[1]} features, the statistics have {width}")
    if isinstance(head, CosineHead):
        weight = F.normalize(weight, dim=1)
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double().cpu()
    return weight, bias


def _shift(
    rows: Rows, *, gone: Sequence[int], mean: Tensor, within: Tensor, margin: float
) -> Tensor:
    """The constant move s (d,) that lowers the forgotten rows' readings far enough.

    Features without any class are drawn from N(mean, within). On these, a forgotten row's lead over
    the best other row should be `margin` standard deviations below 0. `missing` is how much it is
    above that.

    s is the cheapest solution of  F s = -missing,  where F holds the forgotten rows minus the mean
    of the others. The cost is how far s moves the others' readings apart, plus a little for its
    length.
    """
    weight, bias = rows
    if min(gone) < 0 or max(gone) >= len(weight):
        raise TrainingError(f"labels must lie in 0..{len(weight) - 1}, found {sorted(gone)}")
    forgotten = torch.zeros(len(weight), dtype=torch.bool)
    forgotten[list(gone)] = True
    # A fixed draw: the same statistics give the same bytes.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_DRAWS, len(mean), generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(within)
    e = mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T  # (n, d) @ (d, d)
    readings = e @ weight.T + bias  # (n, d) @ (d, c) -> (n, c)
    lead = readings[:, forgotten] - readings[:, ~forgotten].amax(dim=1, keepdim=True)
    missing = (lead.mean(dim=0) + margin * lead.std(dim=0)).clamp(min=0)
    relative = weight - weight[~forgotten].mean(dim=0)
    f, r = relative[forgotten], relative[~forgotten]
    cost = r.T @ r / len(r)  # (d, c) @ (c, d) -> (d, d)
    cost = cost + _SHIFT_RIDGE * cost.trace() / len(cost) * torch.eye(len(cost), dtype=cost.dtype)
    towards = torch.linalg.solve(cost, f.T)  # (d, k)
    # If more classes than features were forgotten, the rows are dependent: use least squares.
    shift: Tensor = -towards @ (torch.linalg.pinv(f @ towards, hermitian=True) @ missing)
    return shift
