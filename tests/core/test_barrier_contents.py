"""The digest of what a barrier's items came to: the same where the same succeeded, another one where anything differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from barrierlab import Scattering, failed, keys, scattered

from flowstone_celery.core import barrier_contents, barriers
from flowstone_celery.core.barrier_model import Ended

if TYPE_CHECKING:
    from corelab import Lab


def digest(lab: Lab, begun: Scattering) -> str:
    found = barriers.barrier(lab.database, begun.barrier)
    assert found is not None
    return barrier_contents.digest(barrier_contents.stretches(lab.database, found.id, found.round))


def done(
    lab: Lab, slots: int, *, missing: tuple[int, ...] = (), large: int | None = None, odd: int | None = None
) -> str:
    """The digest of 1,200 items, some of which failed; one has a large result, one another one."""
    lab.wipe()
    lab.node(slots=slots)
    begun = scattered(lab, 1_200, failure_mode="partial", failure_threshold=0.5)
    hand = begun.hand()
    while (held := begun.range(hand)) is not None:
        ended = [
            failed(each.index)
            if each.index in missing
            else Ended(
                each.index,
                "succeeded",
                1,
                b'"%s"'
                % (
                    b"x" * 999 if each.index == large else b"odd" if each.index == odd else b"%d" % each.index
                ),
            )
            for each in held.items
        ]
        begun.settle(hand, held, ended)
    return digest(lab, begun)


def test_a_digest_does_not_show_how_keys_were_cut_into_pages(lab: Lab) -> None:
    assert done(lab, 1) == done(lab, 8)
    assert done(lab, 1, large=700) == done(lab, 8, large=700)


def test_a_digest_shows_each_result_and_each_that_is_missing(lab: Lab) -> None:
    found = [
        done(lab, 1),
        done(lab, 1, odd=3),
        done(lab, 1, odd=1_199),
        done(lab, 1, large=3),
        done(lab, 1, missing=(3,)),
        done(lab, 1, missing=(3, 700)),
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("large", [None, 700])
def test_a_digest_is_that_of_the_same_keys_and_results_in_memory(lab: Lab, large: int | None) -> None:
    told = [
        b'"%s"' % (b"x" * 999 if index == large else b"%d" % index) for index in range(1_200) if index != 3
    ]
    plain = [key for index, key in enumerate(keys(1_200)) if index != 3]
    stretch = (plain, b"".join(map(barrier_contents.with_length, told)))
    assert done(lab, 1, missing=(3,), large=large) == barrier_contents.digest(iter([stretch]))
