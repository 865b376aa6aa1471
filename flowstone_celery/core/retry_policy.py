"""How long to wait before the next attempt, of a step or of an item."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait before the next attempt. All delays in seconds."""

    backoff: str = "exponential"
    delay: float = 1.0
    cap: float = 300.0
    jitter: float = 0.1

    def pause(self, failures: int, chance: float) -> float:
        """The delay after so many failures (1 for the first); `chance` in 0..1 spreads it by ± jitter."""
        base = {"fixed": self.delay, "linear": self.delay * failures}.get(
            self.backoff, self.delay * 2.0 ** min(failures - 1, 60)
        )
        return min(max(0.0, min(base, self.cap) * (1 + self.jitter * (2 * chance - 1))), self.cap)
