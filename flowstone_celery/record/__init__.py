"""The record of what was made: values with their versions, the lineage between them, the audit log of acts.

1. `values.py`: a value is written with its lineage in the settling transaction, and the current pointer moves to it. Large values
   are written before, out of sight, and only settled there.
2. `lineage.py`: which exact versions a value was made from, and what was made from it.
3. `audit.py`: who did what; an act and its row commit together.
"""
