"""Every event that is told, as a table: `telemetry` reads it, and checks names and fields against it."""

from __future__ import annotations

from typing import Final

GROUPS: Final = {
    "STEP": "run_id step_id name partition attempt",
    "ASSET": "run_id asset partition",
    "BARRIER": "barrier_id run_id asset partition",
}
"""Fields that come together."""

REGISTRY: Final = """
run.start                  INFO    run_started/name         run_id name partition | requested_by kind steps
    A run was created.
run.retry                  INFO    -                        run_id round steps
    The next round of a run began: what had failed is done again.
run.stop                   INFO    run_finished/name        run_id status | name partition duration_ms error kind
    A run ended; the status says how.
step.start                 DEBUG   step_started/name        STEP | queue worker
    User code is about to be called.
step.succeed               DEBUG   step_succeeded/name      STEP duration_ms | queue
    A step is done and its value is stored.
step.fail                  ERROR   step_failed/name         STEP error | code
    A step failed for good.
step.retry                 WARNING step_retried/name        STEP error delay_seconds | code
    An attempt failed; the step is tried again after a pause.
step.skip                  INFO    step_skipped/name        STEP | reason
    A step was skipped.
step.cancel                INFO    step_cancelled/name      STEP | reason
    A step was cancelled.
step.release               WARNING step_released/name       STEP reason | worker
    A step was taken from its worker (crash, lost or stop) and is ready again.
step.timeout               WARNING step_timed_out/name      STEP timeout_seconds | hard
    A step ran longer than it may.
step.stale                 WARNING -                        STEP fence | current_fence
    An answer came after its step had gone to another worker; it was discarded.
materialization.start      DEBUG   -                        ASSET | step_id attempt
    The value of an asset is being made.
materialization.stop       INFO    asset_materialized/asset ASSET duration_ms | step_id attempt bytes
    A new value of an asset is stored and can be read.
materialization.shared     INFO    -                        ASSET version made_by | step_id
    Another run has made the same value meanwhile (made_by), or it came out as it was: the step ends with that version.
materialization.exception  WARNING -                        ASSET error | step_id attempt duration_ms
    The function of an asset raised.
io.load.start              DEBUG   -                        io asset partition
    A value is being read.
io.load.stop               DEBUG   -                        io asset partition duration_ms | bytes error
    A value was read, or could not be.
io.store.start             DEBUG   -                        io asset partition
    A value is being written.
io.store.stop              DEBUG   -                        io asset partition duration_ms | bytes error
    A value was written, or could not be.
scatter.start              INFO    scatter_started/asset    BARRIER count collapsed | round
    A step waits for its items: so many, after equal ones were dropped.
scatter.part               DEBUG   -                        BARRIER items failed duration_ms | step_id retried
    A hand has settled some items.
scatter.instance_exception WARNING -                        BARRIER scatter_key index attempt error retried
    An attempt of an item failed; it is tried again, or not.
scatter.complete           INFO    scatter_completed/asset  BARRIER completed failed
    All items have ended, and no more have failed than may.
scatter.failed             ERROR   scatter_failed/asset     BARRIER completed failed
    More items have failed than may; those still open are not done.
scatter.cancel             INFO    -                        BARRIER | reason
    Items still open are not done: the scatter was cancelled.
scatter.gather_ready       DEBUG   -                        BARRIER
    The step that scattered is ready to gather.
reader.open                DEBUG   -                        ASSET | restored
    A reader of the items of a scatter was opened; restored: it goes on from a checkpoint.
reader.read                DEBUG   -                        ASSET duration_ms count
    A reader has told so many elements.
wakeup.sent                DEBUG   wakeup_sent/queue        queue count | step_ids
    Wake-ups have left for a queue.
wakeup.failed              WARNING -                        queue count error
    The broker took no wake-up; the sweep sends it.
keeper.start               INFO    keeper_started/node      node pid | version
    A node's keeper process began.
keeper.stop                INFO    -                        node pid | reason
    A node's keeper process ended.
worker.drain               INFO    worker_draining/node     node pid | reason running
    A worker takes no new work and finishes what it has.
pacer.sweep                DEBUG   -                        duration_ms | due lost sent released
    The pacer looked for what is due or lost.
resource.setup             INFO    -                        resource duration_ms | asset
    A resource was set up in this process.
resource.setup_failed      WARNING -                        resource error | asset duration_ms hanging
    A resource could not be set up; a later step tries again.
resource.unhealthy         WARNING -                        resource reason
    A resource did not pass its check; it is torn down and set up anew.
resource.teardown          INFO    -                        resource duration_ms | error
    A resource was torn down; an error there is told and nothing more.
error                      ERROR   -                        type retryable count | asset partition run_id code message
    Something failed.
"""
"""Two lines for each: name, level, signal/sender and fields (optional ones after `|`); what it says."""
