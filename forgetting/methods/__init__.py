"""Ways to forget. All follow the protocol in `forgetting.methods.protocol`.

`METHODS` is the table of all methods. To add one, write its module, import its class here, and put
it into `_ALL`, in the order in which tables show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType, UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

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
    """The class of a method, or of a variant such as `lethe:rank=4`.

    Raises:
        DataError: There is no such method. The message lists all methods.
    """
    base = name.partition(":")[0]
    if base not in METHODS:
        raise DataError(f"there is no method {base!r}; the methods are {', '.join(METHODS)}")
    return METHODS[base]


def method(name: str, setting: Mapping[str, Any] | None = None) -> Method:
    """A method with its defaults, changed by `setting` (such as one of its `grid`).

    A variant names its own changes, which win: `gs_lora:targets=attention:rank=4`.

    Raises:
        DataError: There is no such method, or it has no such hyper-parameter or value.
    """
    made: Any = method_class(name)()
    changes = {**(setting or {}), **_named_changes(name)}
    nested = getattr(made, "config", None)
    own = {f.name: getattr(made, f.name) for f in fields(made) if f.name != "config"}
    inner = {f.name: getattr(nested, f.name) for f in fields(nested)} if nested else {}
    hints = {**(get_type_hints(type(nested)) if nested else {}), **get_type_hints(type(made))}
    for key, value in changes.items():
        if key not in own | inner:
            shown = ", ".join(own | inner) or "none"
            raise DataError(f"{name} has no hyper-parameter {key!r}; it has {shown}")
        changes[key] = _value(name, key, value, hints[key])
    if nested is not None:
        config = replace(nested, **{k: v for k, v in changes.items() if k in inner})
        made = replace(made, config=config)
    return cast(Method, replace(made, **{k: v for k, v in changes.items() if k in own}))


def _named_changes(name: str) -> dict[str, str]:
    found = {}
    for word in name.split(":")[1:]:
        key, sign, value = word.partition("=")
        if not (key and sign and value):
            raise DataError(f"expected a variant like 'lethe:rank=4', found {name!r}")
        found[key] = value
    return found


def _value(name: str, key: str, value: Any, hint: Any) -> Any:
    """`value` in the hyper-parameter's type. (A grid holds floats only, a variant's name text.)"""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if get_origin(kinds[0]) is Literal:
        if value in get_args(kinds[0]):
            return value
        raise DataError(f"{name}: {key} is one of {', '.join(get_args(kinds[0]))}, not {value!r}")
    if not {int, float} & set(kinds):
        raise DataError(f"{name}: {key} can't be changed by name")
    try:
        number = float(value)
        whole = int(number)  # refuses infinity and NaN
    except (ValueError, OverflowError):
        raise DataError(f"{name}: {key} is a number, not {value!r}") from None
    if int in kinds and whole != number:
        raise DataError(f"{name}: {key} is a whole number, not {value!r}")
    return whole if int in kinds else number
