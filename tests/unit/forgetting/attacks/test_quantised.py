from __future__ import annotations

import torch

from forgetting.attacks.quantised import BITS, attack_by_rounding, quantised, rounded
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.samples import Samples
from forgetting.models.backbone import Backbone, fingerprint


def test_weights_lie_on_a_grid_of_each_output_channel() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    weight[3] *= 100
    for bits, levels in ((4, 7), (8, 127)):
        small = rounded(weight, bits=bits)
        assert all(len(torch.unique(row)) <= 2 * levels + 1 for row in small)
        step = weight.abs().amax(dim=1, keepdim=True) / levels
        assert bool(((small - weight).abs() <= step / 2 * 1.001).all())
    assert torch.equal(rounded(torch.zeros(2, 3), bits=8), torch.zeros(2, 3))


def test_eight_bits_keep_what_the_backbone_knows_and_leave_it_as_it_is(
    digit_images: ImageSet, backbone: Backbone
) -> None:
    rows = indices(digit_images, "test")
    test = Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))
    points = attack_by_rounding(backbone.model, test=test, forgotten=torch.tensor([3]), bits=BITS)
    assert [point.bits for point in points] == [8, 4]
    assert points[0].acc_f > 0.8
    assert points[0].acc_r > 0.8
    assert fingerprint(backbone.model) == backbone.fingerprint
    assert fingerprint(quantised(backbone.model, bits=4)) != backbone.fingerprint
