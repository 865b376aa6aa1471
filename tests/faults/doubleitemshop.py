"""The app of `itemshop`, with a carrier that sends every wake-up twice."""

from __future__ import annotations

import doubleshop
import itemshop

__all__ = ["app"]

app = itemshop.app
assert doubleshop.app is app
