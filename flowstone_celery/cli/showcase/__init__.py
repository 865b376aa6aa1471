"""What `flowstone demo` shows: one pipeline over the sources of Python itself, on real workers of which one is killed.

`pipeline.py` is what a user would write: a Celery app and its assets, with `measure.py` for the work they do. `crew.py` is the
workers as processes, and their end; `page.py` and `charts.py` the report as HTML. The story itself stands in `cli/demo.py`.
"""
