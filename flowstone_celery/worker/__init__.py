"""The only room that knows Celery: it carries wake-ups out, brings them to the executor, and keeps a keeper beside each worker.

Out: the `CeleryCarrier` publishes a wake-up as an ordinary Celery message under the step's own task name. It says which step; it
carries no work. In: a `StepTask` hands that step to the core's executor, which claims the row or, where it is gone, the queue's
next one, and goes on for a time slice. What Celery shows of it (started, succeeded, failed, retried) is made by the observer.

Beside: a boot-step starts the keeper process with the worker, tells it what the worker listens to and knows, starts it again when it
dies, and lets it go last. The parent of the pool holds no thread and no database connection of ours.

`house.py` is the door (`attach`, `register_step_task`, `queue_of`) and says what the facade offers in return.
"""
