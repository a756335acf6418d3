"""The questions of the suite: few, so that everything happens to each of them, and some hard to tell apart."""

from __future__ import annotations

from itertools import product

from penstock.cache.digest import Key, key_of, prefix
from penstock.cache.epoch import name_of_key, name_of_model, name_of_tenant

from .target import Subject

_MODELS = ("small", "large")
_TENANTS = ("", "acme", "umbrella")


def _twin(key: Key, at: int) -> Key:
    """Another key that differs in one byte."""
    return Key(key[:at] + bytes([key[at] ^ 0x5A]) + key[at + 1 :])


def _subjects() -> list[Subject]:
    found = []
    for number, (model, tenant) in enumerate(product(_MODELS, _TENANTS)):
        key = key_of(prefix(model.encode(), tenant.encode()), b"?")
        # A cache that looks at a part of the key alone takes each of these for the first. Ten bytes of it are enough
        # places: the tag, the home and the set of L1's index come from the first five, stripes from the last two.
        keys = [key, *(_twin(key, at) for at in ((3, 4, 5), (6, 12, 20), (28, 29, 30))[number % 3])]
        found += [Subject(f"{model}/{tenant}/{i}", model, tenant, k) for i, k in enumerate(keys)]
    return found


SUBJECTS = _subjects()

# A flush may take more with it than was meant, when names share a stripe. Here only keys do, and the suite knows it.
assert len({name_of_model(model) for model in _MODELS}) == len(_MODELS)
assert len({name_of_tenant(tenant) for tenant in _TENANTS}) == len(_TENANTS)


def taken_along(kind: str, subject: Subject) -> list[Subject]:
    """What may be forgotten by a flush, more than must be."""
    if kind != "key":
        return []
    return [s for s in SUBJECTS if name_of_key(s.key) == name_of_key(subject.key) and s.key != subject.key]


def meant(kind: str, subject: Subject) -> list[Subject]:
    """What a flush must take."""
    return [
        s
        for s in SUBJECTS
        if kind == "all"
        or (kind == "model" and s.model == subject.model)
        or (kind == "tenant" and s.tenant == subject.tenant)
        or (kind == "key" and s.key == subject.key)
    ]
