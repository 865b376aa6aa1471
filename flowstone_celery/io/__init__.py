"""Where asset values are kept: IO managers behind one small contract.

1. `manager.py` is the contract and the shelf of managers by name.
2. `database.py` keeps values in the row itself: written in the settling transaction, hence exactly once.
3. `memory.py` keeps any object in this process: the smallest example, for unit tests and inline work.

A manager never overwrites: each attempt of a step gets a slot of its own, and the row points at the winner's. So a reader never
sees half a value, or a loser's.
"""
