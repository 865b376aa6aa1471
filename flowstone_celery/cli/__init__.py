"""The command line: one click group that serves `flowstone …` and `celery -A shop flowstone …`.

`main.py` is the door and names each verb's module; a module is imported when its verb is used, and what is heavy when the verb runs.
`desk.py` is what one command works with: the app, its FlowStone, the settings, the database. `verbs.py` holds the exit codes and the
options that verbs share, `show.py` the ways to write, `live.py` the tree of a run while it is waited for.
"""
