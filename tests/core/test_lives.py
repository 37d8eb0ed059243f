"""Lives: what was cached under one is never believed under another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.codec import Header
from scrubjay.core.lives import Lives

tenants = st.sampled_from(["acme", "globex", "a;b"])
epochs = st.text("abcdef0123456789", min_size=1, max_size=8)


def test_without_epochs_it_is_the_stores() -> None:
    lives = Lives("store")
    assert lives.of("acme") == lives.of("globex") == "store"
    assert lives.epochs == {}


def test_an_epoch_is_one_tenants() -> None:
    lives = Lives("store")
    assert lives.learn({"acme": "e1"}) == ["acme"]
    assert lives.of("acme") != "store"
    assert lives.of("globex") == "store"


def test_only_what_changed_is_told() -> None:
    lives = Lives("store")
    assert lives.learn({"acme": "e1", "globex": "e1"}) == ["acme", "globex"]
    assert lives.learn({"acme": "e1", "globex": "e2"}) == ["globex"]
    assert lives.learn({"acme": "e1"}) == []
    assert lives.learn({}) == []
    assert lives.epochs == {"acme": "e1", "globex": "e2"}, "what is not named stays"


def test_epochs_have_no_order() -> None:
    lives = Lives("store")
    for epoch in ("b", "a", "c", "a"):
        assert lives.learn({"acme": epoch}) == ["acme"]
        assert lives.of("acme").endswith(epoch)


def test_an_answer_does_not_put_back_what_was_taken_after_the_question() -> None:
    lives = Lives("store")
    lives.learn({"acme": "e1"})
    since = lives.moment
    lives.learn({"acme": "e2"})
    answer = {"acme": "e1", "globex": "e1"}
    assert lives.doubtful(answer, since)
    assert lives.learn(answer, since) == ["globex"]
    assert lives.epochs == {"acme": "e2", "globex": "e1"}
    assert not lives.doubtful({"acme": "e2"}, since), "what both say is no question"
    since = lives.moment
    assert not lives.doubtful({"acme": "e3"}, since)
    assert lives.learn({"acme": "e3"}, since) == ["acme"]


@given(st.lists(st.dictionaries(tenants, epochs, max_size=3), max_size=10))
def test_two_tenants_or_epochs_never_share_a_life(learnt: list[dict[str, str]]) -> None:
    lives, seen = Lives("store"), {}
    for each in learnt:
        before = dict(lives.epochs)
        assert set(lives.learn(each)) == {tenant for tenant, epoch in each.items() if before.get(tenant) != epoch}
        for tenant in ("acme", "globex", "a;b"):
            life, epoch = lives.of(tenant), lives.epochs.get(tenant)
            assert seen.setdefault(life, epoch) == epoch, "one life, one epoch"


@given(tenants, st.none() | epochs)
def test_the_prefix_is_what_a_header_begins_with(tenant: str, epoch: str | None) -> None:
    lives = Lives("store")
    if epoch is not None:
        lives.learn({tenant: epoch})
    header = Header(lives.of(tenant), "gen", 1, 1).encode()
    assert header.startswith(lives.prefix(tenant) + b"gen;")
    assert Header.decode(header).incarnation == lives.of(tenant)
