"""Ways to forget. All follow the protocol in `forgetting.methods.protocol`.

`METHODS` is the table of all methods. To add one, write its module, import its class here, and put
it into `_ALL`, in the order in which tables show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, cast

from forgetting.errors import DataError
from forgetting.methods.acu import ACU
from forgetting.methods.boundary_shrink import BoundaryShrink
from forgetting.methods.closed_form import ClosedForm
from forgetting.methods.delete import Delete
from forgetting.methods.distilled import DER, FDR, DERPlusPlus, LwF
from forgetting.methods.gs_lora import GSLoRA, GSLoRAPlusPlus
from forgetting.methods.gs_lora_published import GSLoRAPublished
from forgetting.methods.head_mask import HeadMask
from forgetting.methods.lethe import Lethe
from forgetting.methods.lirf import LIRF
from forgetting.methods.protocol import Method
from forgetting.methods.regularised import EWC, L2, MAS
from forgetting.methods.retrain import Retrain
from forgetting.methods.salun import SalUn
from forgetting.methods.scar import SCAR, Duck
from forgetting.methods.scrub import Scrub, ScrubS
from forgetting.methods.slug import SLUG
from forgetting.methods.ssd import SSD

_ALL: tuple[type[Method], ...] = (
    L2,
    EWC,
    MAS,
    LwF,
    DER,
    DERPlusPlus,
    FDR,
    Scrub,
    ScrubS,
    LIRF,
    SalUn,
    Delete,
    Duck,
    SCAR,
    BoundaryShrink,
    SSD,
    SLUG,
    ACU,
    Retrain,
    HeadMask,
    GSLoRAPublished,
    GSLoRA,
    GSLoRAPlusPlus,
    # Ours.
    Lethe,
    ClosedForm,
)

METHODS: Mapping[str, type[Method]] = MappingProxyType({kind.name: kind for kind in _ALL})
"""Every method's class by its name."""


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        DataError: There is no such method. The message lists all methods.
    """
    if name not in METHODS:
        raise DataError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]


def method(name: str, setting: Mapping[str, Any] | None = None) -> Method:
    """A method with its defaults, changed by `setting` (such as one of its `grid`).

    Raises:
        DataError: There is no such method, or it has no such hyper-parameter.
    """
    made = method_class(name)()
    changes = dict(setting or {})
    known = {field.name: getattr(made, field.name) for field in fields(cast(Any, made))}
    for key, value in changes.items():
        if key not in known:
            shown = ", ".join(known) or "none"
            raise DataError(f"{name} has no hyper-parameter {key!r}; it has {shown}")
        if isinstance(known[key], int):
            changes[key] = int(value)  # a grid holds floats only
    return cast(Method, replace(cast(Any, made), **changes))
