"""Epochs: one store flushes, and what disagrees is never valid by accident."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import Key
from penstock.cache.epoch import (
    EPOCH_CELLS,
    KEY_STRIPES,
    MODEL_STRIPES,
    TENANT_STRIPES,
    Epochs,
    name_of_key,
    name_of_model,
    name_of_tenant,
)

KEY = Key(hashlib.sha256(b"a question").digest())
NONCES = st.integers(1, 2**64 - 1)


def fresh() -> Epochs:
    return Epochs(memoryview(bytearray(EPOCH_CELLS * 8)).cast("Q"))


@given(
    model=st.text(max_size=8),
    tenant=st.text(max_size=8),
    key=st.binary(min_size=32, max_size=32).map(Key),
    nonce=NONCES,
)
def test_each_of_the_four_flushes_changes_the_stamp(model: str, tenant: str, key: Key, nonce: int) -> None:
    epochs = fresh()
    scope = epochs.scope(model, tenant)
    seen = {epochs.stamp(scope, key)}
    assert seen == {0}
    for name in ("all", name_of_model(model), name_of_tenant(tenant), name_of_key(key)):
        epochs.set(name, nonce)
        stamp = epochs.stamp(scope, key)
        assert 0 <= stamp < 2**64
        assert epochs.get(name) == nonce
        if (
            nonce << 62 & 2**64 - 1
        ):  # four times the same number may sum to nothing; no two are the same when random
            assert stamp not in seen
        seen.add(stamp)


def test_a_flush_of_another_model_tenant_or_key_leaves_an_answer_valid() -> None:
    epochs = fresh()
    scope = epochs.scope("a", "tenant")
    before = epochs.stamp(scope, KEY)
    for kind, mine, count in (
        ("m", name_of_model("a"), MODEL_STRIPES),
        ("t", name_of_tenant("tenant"), TENANT_STRIPES),
        ("k", name_of_key(KEY), KEY_STRIPES),
    ):
        for i in range(count):
            if f"{kind}:{i}" != mine:
                epochs.set(f"{kind}:{i}", 7**i % 2**64)
    assert epochs.stamp(scope, KEY) == before
    epochs.set(name_of_key(KEY), 1)
    assert epochs.stamp(scope, KEY) != before


def test_a_scope_that_was_kept_sees_every_later_flush() -> None:
    epochs = fresh()
    scope = epochs.scope("model", "tenant")
    stamps = [epochs.stamp(scope, KEY)]
    for nonce in range(1, 100):
        epochs.set("all", nonce)
        stamps.append(epochs.stamp(scope, KEY))
    assert len(set(stamps)) == 100


@given(st.dictionaries(st.sampled_from(["all", "m:0", "m:255", "t:0", "t:1023", "k:0", "k:4095"]), NONCES))
def test_what_was_flushed_can_be_told_to_another_node(flushed: dict[str, int]) -> None:
    epochs, other = fresh(), fresh()
    for name, nonce in flushed.items():
        epochs.set(name, nonce)
    assert epochs.names_set() == flushed
    for name, nonce in epochs.names_set().items():
        other.set(name, nonce)
    scope = epochs.scope("m", "t")
    assert other.stamp(scope, KEY) == epochs.stamp(scope, KEY)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ALL",
        "all:1",
        "m",
        "m:",
        "m:256",
        "m:-1",
        "m: 1",
        "m:1.0",
        "t:1024",
        "k:4096",
        "x:1",
        "m:²",
        "m:00001",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    epochs = fresh()
    with pytest.raises(ValueError, match="no name of an epoch"):
        epochs.set(name, 1)
    with pytest.raises(ValueError, match="no name of an epoch"):
        epochs.get(name)
    assert epochs.names_set() == {}


@pytest.mark.parametrize("nonce", [-1, 1 << 64])
def test_what_is_no_number_of_64_bits_is_refused(nonce: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        fresh().set("all", nonce)


def test_names_are_the_same_on_every_node() -> None:
    assert (name_of_model("qwen3"), name_of_tenant("team-a"), name_of_key(KEY)) == (
        "m:127",
        "t:195",
        "k:1889",
    )


def test_synced_is_said_and_unsaid() -> None:
    epochs = fresh()
    assert not epochs.synced
    epochs.mark_synced(True)
    assert epochs.synced
    assert epochs.names_set() == {}
    epochs.mark_synced(False)
    assert not epochs.synced
