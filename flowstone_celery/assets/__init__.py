"""The asset room: what a user declares, before anything runs.

1. `partition.py` turns a partition key into text and back, without losing its type.
2. `asset.py` checks one declaration and keeps it as an `AssetSpec`; `options.py` is the table of its options, `fingerprint.py`
   the digest of its code.
3. `graph.py` knows who needs whom: order, closures, cycles, drawings.
4. `catalog.py` finds an asset by its name and checks all of them together.

Whatever can be told at declaration raises here, with the nearest name suggested; never in a worker at night.
"""
