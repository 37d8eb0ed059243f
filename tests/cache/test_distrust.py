"""What is read past the caches, and why: what one reason lets go, another may still hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.cache.distrust import Distrust, Hold
from scrubjay.core.keys import KeySpace
from scrubjay.core.scope import Scope

SPACE = KeySpace()
USERS = [Scope("t", f"u{n}") for n in range(2)]
KEYS = [key for user in USERS for key in (SPACE.memory(user), SPACE.context(user, "profile"))]
GENERATIONS = [SPACE.generation(user) for user in USERS]

steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "touch", "touch owner", "end", "untold", "untold owner", "told"]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(steps)
def test_a_key_is_distrusted_as_long_as_anything_holds_it(done: list[tuple[str, int, int]]) -> None:
    distrust = Distrust()
    holds: list[tuple[Hold, set[str]]] = []
    untold: set[str] = set()
    for what, which, place in done:
        key, generation = KEYS[place], GENERATIONS[place % 2]
        if what == "begin":
            holds.append((distrust.hold(), set()))
        elif what in {"touch", "touch owner", "end"} and holds:
            hold, touched = holds[which % len(holds)]
            if what == "touch":
                hold.add([key, key])
                touched.add(key.key)
            elif what == "touch owner":
                hold.add([], [generation])
                touched.add(generation)
            else:
                holds.pop(which % len(holds))
                hold.release()
                assert not hold
                hold.add([key], [generation])
                assert not hold, "what has ended takes nothing any more"
        elif what == "untold":
            distrust.note([key])
            untold.add(key.key)
        elif what == "untold owner":
            distrust.note([], [generation])
            untold.add(generation)
        elif what == "told":
            while portion := distrust.untold.portion(distrust.untold.number):
                distrust.told(portion)
            untold.clear()
        held = untold.union(*(touched for _, touched in holds))
        assert distrust.any is bool(held)
        touched = set().union(*(each for _, each in holds))
        for each in KEYS:
            assert distrust.covers(each) is (each.key in held or each.generation in held)
            assert distrust.held(each) is (each.key in touched or each.generation in touched)


def test_two_transactions_may_hold_the_same() -> None:
    distrust = Distrust()
    one, other = distrust.hold(), distrust.hold()
    for hold in (one, other):
        hold.add([KEYS[0]], [GENERATIONS[1]])
    one.release()
    one.release()
    assert distrust.covers(KEYS[0])
    assert distrust.covers(KEYS[3])
    other.release()
    assert not distrust.any
    assert not distrust.covers(KEYS[0])
