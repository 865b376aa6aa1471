"""The asset room: what a user declares, before anything runs.

1. `partition.py` turns a partition key into text and back, without losing its type.
2. `definitions.py` says what a definition of partitions is (`lists.py`, `windows.py`, `moments.py`, `cron.py`, `multi.py`),
   `mappings.py` which partitions of two assets belong together, `slices.py` what one slice needs and in which order many are made.
3. `asset.py` checks one declaration and keeps it as an `AssetSpec`; `options.py` is the table of its options, `fingerprint.py`
   the digest of its code.
4. `graph.py` knows who needs whom: order, closures, cycles, drawings.
5. `catalog.py` finds an asset by its name and checks all of them together.
6. `recipe.py` says what a value is made of; `freshness.py` compares that with what stands now, `reasons.py` and `why.py` tell the
   difference, `judging.py` holds the verbs.

Whatever can be told at declaration raises here, with the nearest name suggested; never in a worker at night.
"""
