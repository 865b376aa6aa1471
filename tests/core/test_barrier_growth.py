"""A hand's claim grows while its items run: each item is held by one hand, and none is lost, whatever becomes of the hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from barrierlab import Scattering, release, retried, scattered, succeeded

from flowstone_celery.core import barriers

if TYPE_CHECKING:
    from corelab import Lab

    from flowstone_celery.core.model import Claim


def grown(
    begun: Scattering, hand: Claim, wanted: int = 100, *, least: int = 1, yields: bool = False
) -> list[int]:
    found = begun.tx(lambda tx: barriers.grow_range(tx, hand, wanted=wanted, least=least, yields=yields))
    return [each.index for each in found]


def test_a_claim_grows_by_what_follows_in_its_page(lab: Lab) -> None:
    begun = scattered(lab, 5_000)
    hand = begun.hand()
    held = begun.held(hand, 10)
    assert grown(begun, hand, 5) == [10, 11, 12, 13, 14]
    assert begun.settle(hand, held, succeeded(range(12))) is not None
    assert lab.findings() == []
    assert begun.settle(hand, held, succeeded(range(12, 15))) is not None
    assert begun.progress.succeeded == 15


def test_a_claim_grows_onto_a_page_of_its_own_and_keeps_what_is_open(lab: Lab) -> None:
    begun = scattered(lab, 5_000)
    hand, other = begun.hand(), begun.hand(lab.worker())
    held = begun.held(hand)
    size = len(held.items)
    begun.held(other, 10)
    begun.settle(hand, held, succeeded(range(size - 100)))
    page = grown(begun, hand, 50)
    assert page == list(range(2 * size, 2 * size + 50))
    assert lab.findings() == []
    more = grown(begun, hand, 50)
    assert more == list(range(page[-1] + 1, page[-1] + 51))
    everything = [*range(size - 100, size), *page, *more]
    assert begun.settle(hand, held, succeeded(everything)) is not None
    assert begun.progress.succeeded == size + 100
    assert lab.findings() == []
    assert begun.held(hand, 1).items[0].index not in everything


def test_all_that_a_claim_has_grown_to_is_done_when_its_process_dies(lab: Lab) -> None:
    begun = scattered(lab, 1_200, failure_mode="partial", failure_threshold=0.5)
    hand = begun.hand()
    held = begun.held(hand)
    size = len(held.items)
    begun.settle(hand, held, succeeded(range(size - 10)))
    assert len(grown(begun, hand, 20)) == 20
    begun.die(hand)
    assert begun.settle(hand, held, succeeded(range(size - 10, size))) is None
    while begun.status == "open":
        begun.work(begun.hand(lab.worker()))
        lab.clock.advance(seconds=1)
    assert begun.items("succeeded") == list(range(1_200))


def test_a_growth_that_nobody_heard_of_is_found_once_the_rest_is_settled(lab: Lab) -> None:
    begun = scattered(lab, 1_000)
    hand = begun.hand()
    held = begun.held(hand, 10)
    unheard = grown(begun, hand, 7)
    begun.settle(hand, held, succeeded(held))
    assert [each.index for each in begun.held(hand, 10).items] == unheard


def test_no_claim_grows_that_another_holds_or_whose_items_go_alone(lab: Lab) -> None:
    begun = scattered(lab, 100)
    hand = begun.hand()
    assert grown(begun, hand) == []
    begun.held(hand, 2)
    release(lab, hand.worker_id)
    assert grown(begun, hand) == []
    again = begun.hand(lab.worker())
    assert begun.held(again, 10).alone
    assert grown(begun, again) == []


def test_a_retry_that_is_due_comes_first_if_it_is_to(lab: Lab) -> None:
    begun = scattered(lab, 100)
    hand = begun.hand()
    held = begun.held(hand, 10)
    begun.settle(hand, held, [retried(0)])
    assert grown(begun, hand, 5, yields=True) == []
    assert grown(begun, hand, 5) == [10, 11, 12, 13, 14]


def test_of_the_last_page_a_claim_takes_half_at_most(lab: Lab) -> None:
    begun = scattered(lab, 100)
    hand = begun.hand()
    begun.held(hand, 20)
    assert len(grown(begun, hand, 100)) == 40
    assert len(grown(begun, hand, 100, least=30)) == 30
