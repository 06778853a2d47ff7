"""The closed form: erase the forgotten classes' subspace from the feature that the head reads.

LEACE (Belrose et al., *LEACE: Perfect linear concept erasure in closed form*, NeurIPS 2023): of all
affine edits after which no linear classifier can tell the erased classes better than by chance, the
one that moves the features least. With the d x k matrix D of differences between the forgotten
classes' means and the retained mean mu, and the covariance S of the features,

    U = orthonormal basis of span( S^-1/2 D ),   A = U^T S^-1/2,   B = S^1/2 U
    e' = e - B A (e - mu) + shift

BA is the projection onto span(D) along the directions that are uncorrelated with the classes. All
class means that were D apart coincide afterwards. No gradients, no retained images: only
statistics, and those are cached.

Weights: every class counts the same in mu and in the between-class part of S, however few its
images; the within-class part is pooled over all images. How few the forget images are beside the
retained ones doesn't matter to D. mu is the *retained* mean, so that the edit leaves it where it
is.

The theorem is about the fitted features. On new images the head's row of a forgotten class, which
still exists, wins now and then (ORL faces: 3 to 10 %). `shift` answers that: the smallest constant
move that lowers these rows' readings against all others, by what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.erasure.edit import MAX_RANK, Erasure
from forgetting.erasure.statistics import FeatureStatistics, merged, without
from forgetting.errors import TargetError, TrainingError
from forgetting.models.face_transformer import CosineHead

SHRINKAGE = 0.01
MARGIN = 4.0
# In standard deviations of the whitened features; less is rounding, not a difference of means.
_LEAST_DIFFERENCE = 1e-6
_DRAWS = 1024
# What a change of the retained rows' readings costs, against the length of the shift.
_SHIFT_RIDGE = 0.1

Rows = tuple[Tensor, Tensor]


def project(
    retained: FeatureStatistics,
    forget: FeatureStatistics,
    *,
    head: nn.Module | None,
    earlier: Sequence[int] = (),
    shrinkage: float = SHRINKAGE,
    margin: float = MARGIN,
    most: int | None = None,
) -> Erasure:
    """Fit the erasure of all classes of `forget`.

    Args:
        retained: Of the features of retained images, cached or fresh. Classes of `forget` and
            `earlier` that are still in it are left out.
        forget: Of the features of the forget images.
        head: What reads the feature, linear or cosine; its rows are read, not changed. None where
            there is none to be answered for (an embedding service): then the shift is zero.
        earlier: Labels that were forgotten before; the shift keeps their rows low too.
        shrinkage: gamma in S <- (1 - gamma) S + gamma tr(S) / d I, in (0, 1].
        margin: How many standard deviations (of features without any class, by the fitted
            covariance) a forgotten row stays below the best of the others.
        most: Highest rank; the directions in which the classes differ most are taken. None takes
            them all, which is what LEACE's theorem needs.

    Returns:
        An erasure of rank k, the number of forgotten classes (less where their differences from
        the retained mean are linearly dependent), float32.

    Raises:
        TrainingError: k isn't below the feature's width d (nothing would be left) or is above
            `MAX_RANK`, fewer than two retained classes, a wrong width or shrinkage, or no
            difference to erase.
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
    return Erasure(a.float(), b.float(), mean.float(), shift.float())


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
    """S (d, d): within classes, pooled, and between classes, each class with the same weight."""
    spread = both.means - both.mean
    s = both.within + spread.T @ spread / len(spread)  # (d, c) @ (c, d) -> (d, d)
    ridge = s.trace() / len(s) * torch.eye(len(s), dtype=s.dtype)
    return (1 - shrinkage) * s + shrinkage * ridge


def _roots(s: Tensor) -> Rows:
    """S^1/2 and S^-1/2."""
    values, vectors = torch.linalg.eigh(s)
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def _head_rows(head: nn.Module, *, width: int) -> Rows:
    """Weight (c, d) and bias (c,) such that the head's answer is the arg max of W e + b.

    A cosine head divides all readings by the same |e|, so its answer is that of its unit rows.
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
    """The constant move s (d,) that lowers the forgotten rows' readings by what is missing.

    What is missing: features that carry no class are drawn from N(mean, within); on these, a
    forgotten row's lead over the best other row should be `margin` standard deviations below 0.

    s is the least-cost solution of  F s = -missing,  F being the forgotten rows less the mean of
    the others; it costs how far the others' readings move apart, and a little its length.
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
    # Rows may be dependent where more classes than features were forgotten: least squares then.
    shift: Tensor = -towards @ (torch.linalg.pinv(f @ towards, hermitian=True) @ missing)
    return shift
