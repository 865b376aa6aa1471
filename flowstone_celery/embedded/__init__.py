"""A real PostgreSQL and a real Redis stand beside one project folder, as daemons, with nothing installed on the machine.

Where to look: `servers.py` is the door (up, find, down and the single starts and stops of the fault tests); `home.py` is the
`.flowstone` folder with its lock, its state file and the short folder of its sockets; `daemons.py` starts, recognizes and ends
a process; `postgres.py` and `redis.py` say what is particular about each server; `account.py` is how root runs a PostgreSQL that
refuses root; `binaries.py` finds the programs.

Three facts carry the room. A process is recognized by the token of its home in its command line, so that no file needs to be true
after a crash. One kernel lock orders all starters of a home. A cluster appears under its name by one rename, whole or not at all.
"""
