"""The durable core: rows, claims, settlements, leases, and the ticker. It knows no asset and no Celery.

1. A door (assets, later dags, flows, machines) compiles what it wants into a `NewRun` with steps and edges; `runs.start` writes
   all of it in one statement and promises wake-ups for what is ready.
2. A wake-up reaches a worker through the carrier. The `Executor` claims the row (`ready -> running`, a new fence), calls the
   handler of the step's kind, and settles: value, state, lineage, history and what became ready commit together or not at all.
3. It goes on with the next ready row of its queue while its time slice lasts; then it hands the queue back.
4. A `Keeper` beside each worker node extends the leases of the processes that live, releases what the dead held, interrupts for
   cancel and timeout, and is the ticker: whatever is due, lost or was promised in vain is found in the rows.

`model.py` holds the nouns, the `.sql` files every transition, `runs.py` and `steps.py` their typed functions.
"""
