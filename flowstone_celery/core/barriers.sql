-- Barriers: what a scattering step waits for. Lock order: claim, page, barrier, step, run.
-- The hands that do the items are steps; here is what they claim, settle and leave.

-- name: lock_barrier
-- Whoever closes a barrier, or adds to it, or stands aside from it, does it alone.
SELECT b.*, (SELECT s.status FROM flowstone.steps s WHERE s.id = b.step_id) AS step_status
  FROM flowstone.barriers b WHERE b.id = %(barrier)s FOR NO KEY UPDATE OF b;

-- name: scatter (step: running -> waiting; barrier: -> open)
-- The step waits; its barrier stands sealed, with all pages of keys.
WITH moved AS (
    UPDATE flowstone.steps SET status = 'waiting', phase = 'gather', worker_id = NULL, deadline_at = NULL, error = NULL
     WHERE
     -- use: held
    RETURNING id, run_id, round, attempt, fence, kind, name, partition, sole, priority
), made AS (
    INSERT INTO flowstone.barriers (step_id, run_id, round, name, partition, kind, task, queue, priority, status, sealed, total, collapsed,
                                    policy, metadata)
    SELECT m.id, m.run_id, m.round, %(name)s, m.partition, m.kind, %(task)s, %(queue)s, coalesce(%(priority)s::int, m.priority), 'open', true,
           %(total)s, %(collapsed)s,
           %(policy)s::jsonb, %(metadata)s::jsonb FROM moved m
    RETURNING id
), paged AS (
    INSERT INTO flowstone.barrier_pages (barrier_id, number, first, size, keys)
    SELECT b.id, p.number, p.first, p.size, p.keys
      FROM made b CROSS JOIN unnest(%(firsts)s::int[], %(sizes)s::int[], %(keys)s::bytea[]) WITH ORDINALITY AS p(first, size, keys, number)
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT m.run_id, m.id, m.round, 'step.waiting', m.attempt, m.fence, %(worker)s, jsonb_build_object('barrier', b.id, 'items', %(total)s::int)
      FROM moved m CROSS JOIN made b
)
SELECT m.id, b.id AS barrier FROM moved m CROSS JOIN made b;

-- name: wait_for (step: running -> waiting)
-- The step waits for a barrier that stands; a reader's is sealed now, unless it closed before all was read: then a later round reads on.
WITH moved AS (
    UPDATE flowstone.steps SET status = 'waiting', phase = 'gather', worker_id = NULL, deadline_at = NULL, error = NULL
     WHERE
     -- use: held
    RETURNING id, run_id, round, attempt, fence, name, partition, sole
), sealed AS (
    UPDATE flowstone.barriers b
       SET sealed = b.sealed OR b.status = 'open', checkpoint = CASE WHEN b.status <> 'open' THEN b.checkpoint END,
           collapsed = b.collapsed + %(collapsed)s
      FROM moved m
     WHERE b.id = %(barrier)s AND b.step_id = m.id
    RETURNING b.total
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT m.run_id, m.id, m.round, 'step.waiting', m.attempt, m.fence, %(worker)s, jsonb_build_object('barrier', %(barrier)s, 'items', b.total)
      FROM moved m CROSS JOIN sealed b
)
SELECT m.id FROM moved m CROSS JOIN sealed b;

-- name: hold_step
-- Whether this claim still holds its step. The row is locked: nobody releases it meanwhile.
SELECT id FROM flowstone.steps
 WHERE
 -- use: held
   FOR NO KEY UPDATE;

-- name: open_barrier (barrier: -> open)
-- A reader's barrier, without items yet. No row: the step has one in this round.
INSERT INTO flowstone.barriers (step_id, run_id, round, name, partition, kind, task, queue, priority, status, policy, metadata)
SELECT s.id, s.run_id, s.round, %(name)s, s.partition, s.kind, %(task)s, %(queue)s, coalesce(%(priority)s::int, s.priority), 'open',
       %(policy)s::jsonb, %(metadata)s::jsonb
  FROM flowstone.steps s WHERE s.id = %(step)s
ON CONFLICT (step_id, round) DO NOTHING
RETURNING id;

-- name: add_keys
-- Which of these keys are new to the barrier.
INSERT INTO flowstone.barrier_keys (barrier_id, digest) SELECT %(barrier)s, d.digest FROM unnest(%(digests)s::bytea[]) AS d(digest)
ON CONFLICT DO NOTHING
RETURNING digest;

-- name: add_pages
-- Further items stand behind those there are; the reader goes on from the checkpoint.
WITH grown AS (
    UPDATE flowstone.barriers b
       SET total = b.total + %(total)s, collapsed = b.collapsed + %(collapsed)s, checkpoint = %(checkpoint)s::jsonb, keyed = b.keyed OR %(keyed)s
     WHERE b.id = %(barrier)s AND b.status = 'open' AND NOT b.sealed
    RETURNING b.id, b.total - %(total)s AS first
), last AS (
    SELECT coalesce(max(p.number), 0) AS number FROM flowstone.barrier_pages p WHERE p.barrier_id = %(barrier)s
), paged AS (
    INSERT INTO flowstone.barrier_pages (barrier_id, number, first, size, keys)
    SELECT b.id, l.number + p.number, b.first + p.first, p.size, p.keys
      FROM grown b CROSS JOIN last l
     CROSS JOIN unnest(%(firsts)s::int[], %(sizes)s::int[], %(keys)s::bytea[]) WITH ORDINALITY AS p(first, size, keys, number)
)
SELECT id FROM grown;

-- fragment: most_hands_of_b
-- Twice the slots of its queue, and four at least.
greatest(4, 2 * coalesce((SELECT sum(n.slots) FROM flowstone.nodes n
                           WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND b.queue = ANY (n.queues)), 0))

-- name: most_hands
-- As many hands a barrier on this queue may have.
SELECT (
       -- use: most_hands_of_b
)::int AS hands FROM (SELECT %(queue)s::text AS queue) b;

-- fragment: share_of_b
-- How many items a hand of barrier b may have side by side: what may be at work at once is shared by the slots of the queue.
ceil((b.policy ->> 'max_concurrent')::float8 / greatest(1, (
    SELECT sum(n.slots) FROM flowstone.nodes n
     WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND b.queue = ANY (n.queues))))::int

-- fragment: width_of_b
-- How many it will have; above its width nothing is of use.
greatest(1, least(coalesce((b.policy ->> 'width')::int, 1),
    -- use: share_of_b
    ))

-- fragment: lacking_hands_of_b
-- How many more hands can be of use to barrier b: no more than there are items open, than may work at once, than twice the slots of
-- their queue; those that live count.
least(ceil((b.total - b.done - b.failed)::float8 /
      -- use: width_of_b
      ), ceil((b.policy ->> 'max_concurrent')::float8 /
      -- use: width_of_b
      ),
      -- use: most_hands_of_b
)::int
- (SELECT count(*) FROM flowstone.steps s WHERE s.barrier_id = b.id AND s.phase = 'item' AND s.status IN ('ready', 'running'))::int

-- name: add_hands (step: -> ready)
-- As many hands as can be of use.
WITH b AS (
    SELECT o.* FROM flowstone.barriers o WHERE o.id = %(barrier)s AND o.status = 'open'
), q AS (
    SELECT b.id, b.queue, b.priority,
           -- use: lacking_hands_of_b
           AS lacking
      FROM b
), grown AS (
    UPDATE flowstone.runs r SET total_steps = r.total_steps + q.lacking, remaining_steps = r.remaining_steps + q.lacking
      FROM q JOIN b USING (id) WHERE r.id = b.run_id AND r.status = 'running' AND q.lacking > 0
    RETURNING r.total_steps - q.lacking AS ordinal, r.round, r.admitted, r.paused
), turns AS (
    SELECT
           -- use: present_turn
           AS first FROM q
), born AS (
    INSERT INTO flowstone.steps (run_id, ordinal, kind, name, partition, task, queue, priority, v, round, status, phase, max_failures, due_at,
                                 turn, parked, barrier_id)
    SELECT b.run_id, g.ordinal + n.nth, b.kind, b.name, b.partition, b.task, b.queue, b.priority, %(protocol)s, b.round, 'ready', 'item', 1,
           flowstone.now(), t.first + n.nth, CASE WHEN NOT g.admitted THEN 'lane' WHEN g.paused THEN 'paused' END, b.id
      FROM b CROSS JOIN q CROSS JOIN grown g CROSS JOIN turns t CROSS JOIN LATERAL generate_series(1, q.lacking) AS n(nth)
    RETURNING queue, parked
)
SELECT queue FROM born WHERE parked IS NULL;

-- --- claims ---------------------------------------------------------------------------------------------------------------------

-- fragment: hand_of_open
-- The hand, if this claim holds it and its barrier is open. Nobody releases it before the transaction ends, so that what is
-- claimed here never takes the place of a later claim.
hand AS (
    SELECT id, barrier_id FROM flowstone.steps
     WHERE
     -- use: held
       FOR SHARE
), target AS (
    SELECT h.id AS hand, b.id, b.round FROM hand h JOIN flowstone.barriers b ON b.id = h.barrier_id AND b.status = 'open'
)

-- fragment: relaxed
-- The claim's own commit may be lost in a crash of Postgres: its items are open again then, and no part fits it.
relaxed AS (
    SELECT set_config('synchronous_commit', 'off', true)
)

-- name: unfinished
-- What the hand, or its predecessor, has claimed and not settled. No row: the barrier has closed, or another claim holds the hand.
WITH
-- use: hand_of_open
SELECT t.id, t.round, c.status, c.fence, c.alone, c.width, c.lost_by
  FROM target t LEFT JOIN flowstone.item_claims c ON c.hand_id = t.hand AND c.status <> 'settled' AND c.round = t.round;

-- name: claim_page (item_claim: -> held; item_claim: settled -> held)
-- The next range of a page that nobody has locked, unless there is something that comes before it: a claim that is not settled, a
-- retry that is due. Parts of two hands wait for each other where they count on one page: so a hand stays on its page, then begins one
-- that nobody has begun, and shares one only at the end, that with most left. `whole`: a page of which an earlier round has done some
-- is for who looks closer. No row: the barrier has closed, or another claim holds the hand.
WITH
-- use: hand_of_open
, own AS (
    SELECT c.hand_id FROM target t JOIN flowstone.item_claims c ON c.hand_id = t.hand AND c.status <> 'settled' AND c.round = t.round
), due AS (
    SELECT i.index FROM target t CROSS JOIN LATERAL (
        SELECT i.index FROM flowstone.items i WHERE i.barrier_id = t.id AND i.status = 'retry' AND i.due_at <= flowstone.now() LIMIT 1) i
), former AS (
    SELECT p.* FROM target t JOIN flowstone.item_claims c ON c.hand_id = t.hand AND c.barrier_id = t.id AND c.round = t.round
     CROSS JOIN LATERAL (
        SELECT p.barrier_id, p.number, p.next FROM flowstone.barrier_pages p
         WHERE p.barrier_id = t.id AND p.number = c.page AND p.next < p.size AND NOT (p.patchy AND %(whole)s) FOR NO KEY UPDATE SKIP LOCKED) p
     WHERE NOT EXISTS (SELECT 1 FROM own) AND NOT EXISTS (SELECT 1 FROM due)
), fresh AS (
    SELECT p.* FROM target t CROSS JOIN LATERAL (
        SELECT p.barrier_id, p.number, p.next FROM flowstone.barrier_pages p
         WHERE p.barrier_id = t.id AND p.next < p.size AND p.next = 0 AND NOT (p.patchy AND %(whole)s)
         ORDER BY p.number LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) p
     WHERE NOT EXISTS (SELECT 1 FROM own) AND NOT EXISTS (SELECT 1 FROM due) AND NOT EXISTS (SELECT 1 FROM former)
), shared AS (
    SELECT p.* FROM target t CROSS JOIN LATERAL (
        SELECT p.barrier_id, p.number, p.next FROM flowstone.barrier_pages p
         WHERE p.barrier_id = t.id AND p.next < p.size AND NOT (p.patchy AND %(whole)s)
         ORDER BY p.next - p.size, p.number LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) p
     WHERE NOT EXISTS (SELECT 1 FROM own) AND NOT EXISTS (SELECT 1 FROM due) AND NOT EXISTS (SELECT 1 FROM former)
       AND NOT EXISTS (SELECT 1 FROM fresh)
), page AS (
    SELECT * FROM former UNION ALL SELECT * FROM fresh UNION ALL SELECT * FROM shared
), taken AS (
    UPDATE flowstone.barrier_pages p SET next = least(p.size, p.next + %(wanted)s)
      FROM page q WHERE p.barrier_id = q.barrier_id AND p.number = q.number
    RETURNING p.barrier_id, p.number, p.first + q.next AS first, p.next - q.next AS size, p.first AS page_first, p.patchy
), claimed AS (
    INSERT INTO flowstone.item_claims (hand_id, barrier_id, round, kind, page, first, size, left_open, width, fence, worker_id, status)
    SELECT t.hand, k.barrier_id, t.round, 'range', k.number, k.first, k.size, k.size, %(width)s, %(fence)s, %(worker)s, 'held'
      FROM taken k CROSS JOIN target t
    ON CONFLICT (hand_id) DO UPDATE
       SET barrier_id = excluded.barrier_id, round = excluded.round, kind = 'range', page = excluded.page, first = excluded.first,
           size = excluded.size, items = NULL, left_open = excluded.left_open, width = excluded.width, alone = false,
           fence = excluded.fence, worker_id = excluded.worker_id, status = 'held', lost_by = NULL
),
-- use: relaxed
SELECT t.round, EXISTS (SELECT 1 FROM own) AS unfinished, EXISTS (SELECT 1 FROM due) AS due,
       k.number, k.first, k.size, k.page_first, k.patchy, (SELECT count(*) FROM relaxed) AS relaxed
  FROM target t LEFT JOIN taken k ON true;

-- name: grow_claim
-- The hand's claim has further items, besides those of it that are open: what follows in its page, else a page that nobody has begun, else
-- one that others have begun; of the last page half at most, so that all hands end together. The claim's range is the newest one, what is
-- left of those before it is listed. No row: nothing can be had this way, or nothing is to be, because a retry is due.
WITH
-- use: hand_of_open
, own AS (
    SELECT t.id, t.round, c.hand_id, c.page, c.first, c.size FROM target t JOIN flowstone.item_claims c ON c.hand_id = t.hand
     WHERE c.barrier_id = t.id AND c.round = t.round AND c.status = 'held' AND c.status <> 'settled' AND c.fence = %(fence)s AND NOT c.alone
       AND NOT (%(yields)s AND EXISTS (
               SELECT 1 FROM flowstone.items i WHERE i.barrier_id = t.id AND i.status = 'retry' AND i.due_at <= flowstone.now()))
), former AS (
    SELECT p.* FROM own o CROSS JOIN LATERAL (
        SELECT p.barrier_id, p.number, p.next FROM flowstone.barrier_pages p
         WHERE p.barrier_id = o.id AND p.number = o.page AND p.next < p.size AND p.first + p.next = o.first + o.size AND NOT p.patchy
           FOR NO KEY UPDATE SKIP LOCKED) p
), fresh AS (
    SELECT p.* FROM own o CROSS JOIN LATERAL (
        SELECT p.barrier_id, p.number, p.next FROM flowstone.barrier_pages p
         WHERE p.barrier_id = o.id AND p.next < p.size AND p.next = 0 AND NOT p.patchy
         ORDER BY p.number LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) p
     WHERE NOT EXISTS (SELECT 1 FROM former)
), shared AS (
    SELECT p.* FROM own o CROSS JOIN LATERAL (
        SELECT p.barrier_id, p.number, p.next FROM flowstone.barrier_pages p
         WHERE p.barrier_id = o.id AND p.next < p.size AND NOT p.patchy
         ORDER BY p.number LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) p
     WHERE NOT EXISTS (SELECT 1 FROM former) AND NOT EXISTS (SELECT 1 FROM fresh)
), page AS (
    SELECT * FROM former UNION ALL SELECT * FROM fresh UNION ALL SELECT * FROM shared
), taken AS (
    UPDATE flowstone.barrier_pages p
       SET next = least(p.size, p.next + CASE WHEN EXISTS (
               SELECT 1 FROM flowstone.barrier_pages o WHERE o.barrier_id = p.barrier_id AND o.next < o.size AND o.number <> p.number)
           THEN %(wanted)s ELSE least(%(wanted)s, greatest(%(least)s, (p.size - p.next + 1) / 2)) END)
      FROM page q WHERE p.barrier_id = q.barrier_id AND p.number = q.number
    RETURNING p.number, p.first + q.next AS first, p.next - q.next AS size, p.first AS page_first
), grown AS (
    UPDATE flowstone.item_claims c
       SET page = k.number, first = CASE WHEN f.follows THEN c.first ELSE k.first END,
           size = CASE WHEN f.follows THEN c.size ELSE 0 END + k.size, items = f.items,
           left_open = k.size + CASE WHEN f.follows THEN c.left_open ELSE coalesce(cardinality(f.items), 0) END
      FROM own o CROSS JOIN taken k CROSS JOIN LATERAL (
           SELECT EXISTS (SELECT 1 FROM former) AS follows,
                  (SELECT array_agg(x.index) FROM flowstone.item_claims m CROSS JOIN LATERAL (
                       SELECT unnest(m.items) AS index
                       UNION ALL SELECT generate_series(m.first, m.first + m.size - 1) WHERE NOT EXISTS (SELECT 1 FROM former)) x
                    WHERE m.hand_id = o.hand_id AND coalesce((  -- a lookup: NOT EXISTS may be planned as a look at all items of the barrier
                          SELECT i.claim IS NOT DISTINCT FROM m.hand_id FROM flowstone.items i
                           WHERE i.barrier_id = m.barrier_id AND i.index = x.index), true)) AS items) f
     WHERE c.hand_id = o.hand_id AND c.status = 'held'
    RETURNING c.left_open
),
-- use: relaxed
SELECT k.number, k.first, k.size, k.page_first, (SELECT count(*) FROM grown) AS grown, (SELECT count(*) FROM relaxed) AS relaxed FROM taken k;

-- name: hand_deadline
-- By then the hand has settled something, or an item has run too long and cannot be told: its keeper ends the process.
UPDATE flowstone.steps SET deadline_at = flowstone.now() + make_interval(secs => %(seconds)s::float8)
 WHERE
 -- use: held
;

-- name: taken_of_page
-- Of a range in a page of an earlier round: the items that there has been news of.
SELECT i.index FROM flowstone.items i WHERE i.barrier_id = %(barrier)s AND i.index >= %(first)s AND i.index < %(first)s + %(size)s;

-- name: keep_of_claim (item_claim: held -> settled)
-- Only these items of the range are the claim's.
UPDATE flowstone.item_claims
   SET kind = 'retry', items = %(items)s::int[], page = NULL, left_open = cardinality(%(items)s::int[]),
       first = 0, size = 0, status = CASE WHEN cardinality(%(items)s::int[]) = 0 THEN 'settled' ELSE 'held' END
 WHERE hand_id = %(step)s AND fence = %(fence)s AND status = 'held';

-- name: claim_retries (item_claim: -> held; item_claim: settled -> held)
-- Retries that are due; one that a process may have died of goes alone.
WITH
-- use: hand_of_open
, due AS (
    SELECT i.* FROM target t CROSS JOIN LATERAL (
        SELECT i.index, i.alone, i.due_at FROM flowstone.items i
         WHERE i.barrier_id = t.id AND i.status = 'retry' AND i.due_at <= flowstone.now()
         ORDER BY i.due_at LIMIT %(wanted)s FOR NO KEY UPDATE SKIP LOCKED) i
), foremost AS (
    SELECT (array_agg(d.index ORDER BY d.due_at, d.index))[1] AS index, (array_agg(d.alone ORDER BY d.due_at, d.index))[1] AS alone FROM due d
), chosen AS (
    SELECT d.index, d.alone FROM due d CROSS JOIN foremost f WHERE CASE WHEN f.alone THEN d.index = f.index ELSE NOT d.alone END
), taken AS (
    UPDATE flowstone.items i SET claim = t.hand, due_at = NULL FROM target t
     WHERE i.barrier_id = t.id AND i.index = ANY (ARRAY(SELECT index FROM chosen)) AND i.status = 'retry'
    RETURNING i.index, i.attempt, i.failures, i.crashes, i.alone
), claimed AS (
    INSERT INTO flowstone.item_claims (hand_id, barrier_id, round, kind, items, left_open, width, alone, fence, worker_id, status)
    SELECT t.hand, t.id, t.round, CASE WHEN k.alone THEN 'single' ELSE 'retry' END, k.items, cardinality(k.items), %(width)s, k.alone, %(fence)s,
           %(worker)s, 'held'
      FROM (SELECT array_agg(index) AS items, bool_or(alone) AS alone FROM taken HAVING count(*) > 0) k CROSS JOIN target t
    ON CONFLICT (hand_id) DO UPDATE
       SET barrier_id = excluded.barrier_id, round = excluded.round, kind = excluded.kind, page = NULL, first = 0, size = 0,
           items = excluded.items, left_open = excluded.left_open, width = excluded.width, alone = excluded.alone, fence = excluded.fence,
           worker_id = excluded.worker_id, status = 'held', lost_by = NULL
),
-- use: relaxed
SELECT t.round, i.index, i.attempt, i.failures, i.crashes, i.alone, p.number, p.first,
       (SELECT count(*) FROM due) >= %(wanted)s OR (SELECT count(*) FROM due) > (SELECT count(*) FROM chosen) AS more,
       (SELECT count(*) FROM relaxed) AS relaxed
  FROM target t CROSS JOIN taken i CROSS JOIN LATERAL (
       SELECT p.number, p.first FROM flowstone.barrier_pages p WHERE p.barrier_id = t.id AND p.first <= i.index ORDER BY p.first DESC LIMIT 1) p;

-- name: open_of_claim
-- The items of the hand's claim that are open still, with the pages of their keys.
SELECT x.index, i.attempt, i.failures, i.crashes, i.losses, i.alone, p.number, p.first
  FROM flowstone.item_claims c
 CROSS JOIN LATERAL (SELECT unnest(c.items) AS index UNION ALL SELECT generate_series(c.first, c.first + c.size - 1)) x
  LEFT JOIN flowstone.items i ON i.barrier_id = c.barrier_id AND i.index = x.index
 CROSS JOIN LATERAL (
       SELECT p.number, p.first FROM flowstone.barrier_pages p WHERE p.barrier_id = c.barrier_id AND p.first <= x.index
        ORDER BY p.first DESC LIMIT 1) p
 WHERE c.hand_id = %(step)s AND (i.index IS NULL OR i.claim = c.hand_id);

-- name: take_over (item_claim: lost -> held)
-- What the predecessor lost is this claim's now.
UPDATE flowstone.item_claims c SET status = 'held', lost_by = NULL, fence = %(fence)s, worker_id = %(worker)s
 WHERE c.hand_id = %(step)s AND c.status IN ('lost', 'held')
RETURNING c.round;

-- name: widths_beside
-- How many items other claims may have at work at once, and how many are a hand's share.
SELECT coalesce((SELECT sum(c.width) FROM flowstone.item_claims c
                  WHERE c.barrier_id = b.id AND c.status <> 'settled' AND c.status = 'held' AND c.hand_id <> %(step)s), 0)::int AS width,
       -- use: share_of_b
       AS share
  FROM flowstone.barriers b WHERE b.id = %(barrier)s;

-- name: free_held
-- Failed items that were held for a common retry are due together, if nothing else is open.
WITH held AS (
    SELECT i.index FROM flowstone.items i
     WHERE i.barrier_id = %(barrier)s AND i.status = 'retry' AND i.due_at = 'infinity'
       AND (SELECT b.sealed FROM flowstone.barriers b WHERE b.id = %(barrier)s)
       AND NOT EXISTS (SELECT 1 FROM flowstone.barrier_pages p WHERE p.barrier_id = %(barrier)s AND p.next < p.size)
       AND NOT EXISTS (SELECT 1 FROM flowstone.item_claims c WHERE c.barrier_id = %(barrier)s AND c.status <> 'settled')
       AND NOT EXISTS (SELECT 1 FROM flowstone.items o WHERE o.barrier_id = %(barrier)s AND o.status = 'retry' AND o.due_at < 'infinity')
)
UPDATE flowstone.items i SET due_at = flowstone.now()
 WHERE i.barrier_id = %(barrier)s AND i.index = ANY (ARRAY(SELECT index FROM held)) AND i.status = 'retry';

-- --- parts ----------------------------------------------------------------------------------------------------------------------

-- fragment: unless_ended
-- An item of which there was news is written only if it waits for this hand to try it again.
ON CONFLICT (barrier_id, index) DO UPDATE
   SET status = excluded.status, attempt = excluded.attempt, failures = excluded.failures, crashes = excluded.crashes,
       losses = excluded.losses, alone = excluded.alone, round = excluded.round, seconds = excluded.seconds, result = excluded.result,
       error = excluded.error, due_at = excluded.due_at, ended_at = excluded.ended_at, claim = NULL
 WHERE items.status = 'retry' AND items.claim = %(step)s

-- function: settle_part (item: -> retry | succeeded | failed | cancelled; item: retry -> succeeded | failed | cancelled; item_claim: held -> settled)
-- takes: step bigint, worker bigint, fence bigint, barrier bigint, round int, indexes int[], statuses text[], attempts int[], failures int[]
-- takes: crashes int[], losses int[], alone boolean[], seconds float8[], results bytea[], errors text[], delays float8[]
-- answers: status text, written int, cancelled int, done int, failed int, total int, sealed boolean
-- What has ended of a claim: its items, if they have not ended before and the claim is theirs; what is left of the claim; what is counted on
-- page and barrier, which others may wait for, at the very last. No row: another claim holds the hand now.
DECLARE
    c flowstone.item_claims;
    b flowstone.barriers;
    news int;
    good int;
    bad int := 0;
    stopped int := 0;
    good_ones int[];
    bad_ones int[];
    complete int := 0;
BEGIN
    SELECT o.* INTO c FROM flowstone.item_claims o
     WHERE o.hand_id = %(step)s AND o.worker_id = %(worker)s AND o.fence = %(fence)s AND o.barrier_id = %(barrier)s AND o.round = %(round)s
       AND o.status IN ('held', 'settled')
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT o.status, o.round INTO b.status, b.round FROM flowstone.barriers o WHERE o.id = %(barrier)s;
    IF b.round IS DISTINCT FROM %(round)s THEN
        RETURN;
    END IF;
    IF b.status <> 'open' THEN
        RETURN QUERY SELECT b.status, 0, 0, b.done, b.failed, b.total, b.sealed;
        RETURN;
    END IF;
    IF %(statuses)s IS NULL AND cardinality(%(indexes)s) = 1 THEN
        -- A single arrival, as many come: nothing is unrolled, nothing summed up.
        INSERT INTO flowstone.items (barrier_id, index, status, attempt, failures, crashes, losses, alone, round, seconds, result, ended_at)
        SELECT %(barrier)s, g.index, 'succeeded', 1, 0, 0, 0, false, %(round)s, coalesce((%(seconds)s)[1], 0), (%(results)s)[1], flowstone.now()
          FROM (SELECT (%(indexes)s)[1] AS index) g
         WHERE g.index >= c.first AND g.index < c.first + c.size OR g.index = ANY (c.items)
        -- use: unless_ended
        ;
        GET DIAGNOSTICS news = ROW_COUNT;
        good := news;
        good_ones := CASE WHEN news > 0 THEN %(indexes)s END;
    ELSE
        WITH written AS (
            INSERT INTO flowstone.items (barrier_id, index, status, attempt, failures, crashes, losses, alone, round, seconds, result, error, due_at,
                                         ended_at)
            SELECT %(barrier)s, g.index, coalesce(g.status, 'succeeded'), coalesce(g.attempt, 1), coalesce(g.failures, 0), coalesce(g.crashes, 0),
                   coalesce(g.losses, 0), coalesce(g.alone, false), %(round)s, coalesce(g.seconds, 0), g.result, g.error::jsonb,
                   CASE WHEN g.status = 'retry' THEN
                        CASE WHEN g.delay < 0 THEN 'infinity' ELSE flowstone.now() + make_interval(secs => coalesce(g.delay, 0)) END END,
                   CASE WHEN g.status = 'retry' THEN NULL ELSE flowstone.now() END
              FROM unnest(%(indexes)s, %(statuses)s, %(attempts)s, %(failures)s, %(crashes)s, %(losses)s, %(alone)s, %(seconds)s, %(results)s,
                          %(errors)s, %(delays)s)
                   AS g(index, status, attempt, failures, crashes, losses, alone, seconds, result, error, delay)
             WHERE g.index >= c.first AND g.index < c.first + c.size OR g.index = ANY (c.items)
            -- use: unless_ended
            RETURNING index, status
        )
        SELECT count(*)::int, count(*) FILTER (WHERE w.status = 'succeeded')::int, count(*) FILTER (WHERE w.status = 'failed')::int,
               count(*) FILTER (WHERE w.status = 'cancelled')::int,
               CASE WHEN c.page IS NULL OR c.items IS NOT NULL THEN array_agg(w.index) FILTER (WHERE w.status = 'succeeded') END,
               CASE WHEN c.page IS NULL OR c.items IS NOT NULL THEN array_agg(w.index) FILTER (WHERE w.status = 'failed') END
          INTO news, good, bad, stopped, good_ones, bad_ones FROM written w;
    END IF;
    IF news > 0 THEN
        UPDATE flowstone.item_claims o
           SET left_open = greatest(0, c.left_open - news), status = CASE WHEN c.left_open <= news THEN 'settled' ELSE 'held' END
         WHERE o.hand_id = %(step)s AND o.status IN ('held', 'settled');
    END IF;
    IF good + bad = 0 THEN
        complete := 0;
    ELSIF c.page IS NOT NULL AND c.items IS NULL THEN
        UPDATE flowstone.barrier_pages p SET done = p.done + good, failed = p.failed + bad
         WHERE p.barrier_id = %(barrier)s AND p.number = c.page
        RETURNING CASE WHEN p.done + p.failed = p.size THEN p.done ELSE 0 END INTO complete;
    ELSE
        WITH counts AS (
            SELECT (SELECT p.number FROM flowstone.barrier_pages p WHERE p.barrier_id = %(barrier)s AND p.first <= w.index
                     ORDER BY p.first DESC LIMIT 1) AS number, sum(w.done)::int AS done, sum(w.failed)::int AS failed
              FROM (SELECT unnest(good_ones) AS index, 1 AS done, 0 AS failed UNION ALL SELECT unnest(bad_ones), 0, 1) w GROUP BY 1
        ), locked AS (
            SELECT p.number FROM flowstone.barrier_pages p
             WHERE p.barrier_id = %(barrier)s AND p.number = ANY (ARRAY(SELECT number FROM counts)) ORDER BY p.number FOR NO KEY UPDATE
        ), paged AS (
            UPDATE flowstone.barrier_pages p SET done = p.done + k.done, failed = p.failed + k.failed
              FROM locked l JOIN counts k USING (number) WHERE p.barrier_id = %(barrier)s AND p.number = l.number
            RETURNING CASE WHEN p.done + p.failed = p.size THEN p.done ELSE 0 END AS done
        )
        SELECT coalesce(sum(p.done), 0)::int INTO complete FROM paged p;
    END IF;
    IF complete + bad > 0 THEN
        UPDATE flowstone.barriers o SET done = o.done + complete, failed = o.failed + bad WHERE o.id = %(barrier)s
        RETURNING o.status, o.done, o.failed, o.total, o.sealed INTO b.status, b.done, b.failed, b.total, b.sealed;
    END IF;
    RETURN QUERY SELECT b.status, news, stopped, b.done, b.failed, b.total, b.sealed;
END

-- name: close_barrier (barrier: open -> completed | partial_failure | failed | cancelled)
UPDATE flowstone.barriers b SET status = %(status)s, error = %(error)s::jsonb, closed_at = flowstone.now()
 WHERE b.id = %(barrier)s AND b.status = 'open'
RETURNING b.*;

-- name: skip_hands (step: ready -> skipped; run: running -> succeeded | failed | cancelled; run: cancelling -> cancelled | failed)
-- Hands that do not run are of no use to a barrier that has closed. One that somebody holds finds out by itself.
WITH batch AS (
    SELECT s.id FROM flowstone.steps s WHERE s.barrier_id = %(barrier)s AND s.phase = 'item' AND s.status = 'ready'
     ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'skipped', finished_at = flowstone.now(), due_at = NULL, sent_at = NULL, sends = 0, parked = NULL, note = NULL
      FROM batch b WHERE s.id = b.id AND s.status = 'ready'
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence)
    SELECT run_id, id, round, 'step.skipped', attempt, fence FROM moved
), ended AS (
    SELECT run_id, count(*) AS finished, 0 AS failed, 0 AS cancelled, NULL::jsonb AS error FROM moved GROUP BY run_id
),
-- use: counted
SELECT (SELECT count(*) FROM moved) AS moved, k.status AS run_status, k.tenant, CASE WHEN k.finished_at IS NOT NULL THEN k.lane END AS lane
  FROM (SELECT 1) one LEFT JOIN counted k ON true;

-- name: gather (step: waiting -> ready)
-- All items have ended: the step is called again, to gather.
WITH moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', phase = 'gather', due_at = flowstone.now(), parked = CASE WHEN NOT r.admitted THEN 'lane' WHEN r.paused THEN 'paused' END
      FROM flowstone.runs r WHERE s.id = %(step)s AND s.status = 'waiting' AND r.id = s.run_id
    RETURNING s.id, s.run_id, s.round, s.queue, s.parked
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event) SELECT run_id, id, round, 'step.ready' FROM moved
)
SELECT queue, parked FROM moved;

-- name: end_waiting (barrier: open -> cancelled; step: waiting -> failed | cancelled; step: blocked -> failed | cancelled | ready; run: running -> failed | cancelled; run: cancelling -> cancelled | failed)
-- The barrier has failed or was cancelled: so has the step, and whatever needs it.
WITH RECURSIVE moved AS (
    UPDATE flowstone.steps SET status = %(status)s, error = %(error)s::jsonb, finished_at = flowstone.now()
     WHERE id = %(step)s AND status = 'waiting'
    RETURNING id, run_id, ordinal, round, attempt, fence, name, partition, sole, queue, priority, turn, status
),
-- use: all_that_falls

-- --- hands ----------------------------------------------------------------------------------------------------------------------

-- name: stand_aside (step: running -> ready)
-- There is nothing to claim now: the hand waits for the next retry, or to be called. Its barrier's row is locked by now, so that nobody
-- makes an item available unseen.
WITH limits AS (
    SELECT (b.policy ->> 'max_concurrent')::int <= (
               SELECT coalesce(sum(c.width), 0) FROM flowstone.item_claims c
                WHERE c.barrier_id = b.id AND c.status <> 'settled' AND c.status = 'held' AND c.hand_id <> %(step)s) IS TRUE AS denied,
           (SELECT i.due_at FROM flowstone.items i WHERE i.barrier_id = b.id AND i.status = 'retry' AND i.due_at < 'infinity'
             ORDER BY i.due_at LIMIT 1) AS due_at,
           EXISTS (SELECT 1 FROM flowstone.barrier_pages p WHERE p.barrier_id = b.id AND p.next < p.size)
        OR EXISTS (SELECT 1 FROM flowstone.item_claims c WHERE c.hand_id = %(step)s AND c.status <> 'settled') AS work
      FROM flowstone.barriers b WHERE b.id = %(barrier)s
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', worker_id = NULL, deadline_at = NULL, parked = 'idle',
           due_at = CASE WHEN l.denied THEN greatest(coalesce(l.due_at, flowstone.now()), flowstone.now() + interval '5 seconds')
                         ELSE coalesce(l.due_at, flowstone.now() + interval '1 hour') END
      FROM limits l
     WHERE (l.denied OR NOT l.work AND (l.due_at IS NULL OR l.due_at > flowstone.now())) AND s.id = %(step)s AND s.status = 'running'
       AND s.worker_id = %(worker)s AND s.fence = %(fence)s
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, %(worker)s, jsonb_build_object('reason', 'no item to do now') FROM moved
)
SELECT id FROM moved;

-- name: go_back (step: running -> ready; item_claim: held -> lost)
-- The hand's slice is over: it stands behind what is first in line now. What it still holds is its own when it comes again.
WITH mine AS (
    SELECT id, run_id, queue, priority FROM flowstone.steps
     WHERE
     -- use: held
       FOR NO KEY UPDATE
), turns AS (
    SELECT
           -- use: present_turn
           AS first FROM mine q
), dropped AS (
    UPDATE flowstone.item_claims c SET status = 'lost', lost_by = 'stop' FROM mine m
     WHERE c.hand_id = m.id AND c.fence = %(fence)s AND c.status = 'held'
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', worker_id = NULL, deadline_at = NULL, due_at = flowstone.now(), turn = t.first + 1,
           parked = CASE WHEN NOT r.admitted THEN 'lane' WHEN r.paused THEN 'paused' END
      FROM mine m CROSS JOIN turns t JOIN flowstone.runs r ON true
     WHERE s.id = m.id AND r.id = m.run_id AND s.status = 'running'
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence, s.queue, s.parked
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, %(worker)s, jsonb_build_object('reason', 'its slice is over') FROM moved
)
SELECT queue, parked FROM moved;

-- name: finish_hand (step: running -> succeeded; run: running -> succeeded | failed | cancelled; run: cancelling -> cancelled | failed; item_claim: held | lost -> settled)
-- The barrier has closed: its hand has done what there was to do.
WITH moved AS (
    UPDATE flowstone.steps SET status = 'succeeded', error = NULL, worker_id = NULL, deadline_at = NULL, finished_at = flowstone.now()
     WHERE
     -- use: held
       AND barrier_id = %(barrier)s AND NOT EXISTS (SELECT 1 FROM flowstone.barriers b WHERE b.id = %(barrier)s AND b.status = 'open')
    RETURNING id, run_id, round, attempt, fence
), dropped AS (
    -- Under its own fence: what a predecessor claimed answers to no late part of his.
    UPDATE flowstone.item_claims c
       SET status = 'settled', lost_by = NULL, left_open = 0, fence = m.fence, worker_id = %(worker)s FROM moved m
     WHERE c.hand_id = m.id AND (c.status IN ('held', 'lost') OR c.fence <> m.fence)
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    SELECT run_id, id, round, 'step.succeeded', attempt, fence, %(worker)s FROM moved
), ended AS (
    SELECT m.run_id, 1 AS finished, 0 AS failed, 0 AS cancelled, NULL::jsonb AS error FROM moved m
),
-- use: counted
SELECT m.id, k.status AS run_status, k.tenant, CASE WHEN k.finished_at IS NOT NULL THEN k.lane END AS lane
  FROM moved m LEFT JOIN counted k ON true;

-- name: call_hands
-- Hands that stand aside are back in the line: there are items to do.
WITH batch AS (
    SELECT s.id, s.queue, s.priority FROM flowstone.steps s WHERE s.barrier_id = %(barrier)s AND s.parked = 'idle'
     ORDER BY s.id LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), turns AS (
    SELECT q.queue, q.priority,
           -- use: present_turn
           AS first
      FROM (SELECT DISTINCT queue, priority FROM batch) q
), moved AS (
    UPDATE flowstone.steps s SET due_at = flowstone.now(), turn = t.first, parked = CASE WHEN NOT r.admitted THEN 'lane' WHEN r.paused THEN 'paused' END
      FROM batch b JOIN turns t USING (queue, priority), flowstone.runs r
     WHERE s.id = b.id AND s.parked = 'idle' AND r.id = s.run_id
    RETURNING s.queue, s.parked
)
SELECT queue FROM moved WHERE parked IS NULL;

-- --- the next round -------------------------------------------------------------------------------------------------------------

-- name: reopen_items (item: failed | cancelled -> retry; item_claim: held | lost -> settled)
-- What has not succeeded is done again; no claim of an earlier round holds anything any more.
WITH dropped AS (
    UPDATE flowstone.item_claims c SET status = 'settled', lost_by = NULL, left_open = 0
     WHERE c.barrier_id = %(barrier)s AND c.status <> 'settled'
)
UPDATE flowstone.items i
   SET status = 'retry', attempt = 0, failures = 0, crashes = 0, losses = 0, round = %(round)s, error = NULL, result = NULL, claim = NULL,
       due_at = flowstone.now(), ended_at = NULL
 WHERE i.barrier_id = %(barrier)s AND i.status IN ('failed', 'cancelled', 'retry');

-- name: reopen_pages
-- Pages count no failures, and begin again where not all of their items have ended. Answers how many succeeded items the barrier has
-- counted by pages that are no longer complete.
WITH moved AS (
    UPDATE flowstone.barrier_pages p
       SET failed = 0, next = CASE WHEN p.done + p.failed < p.size THEN 0 ELSE p.next END, patchy = p.patchy OR p.done + p.failed < p.size
      FROM flowstone.barrier_pages o
     WHERE p.barrier_id = %(barrier)s AND (p.failed > 0 OR p.done + p.failed < p.size) AND o.barrier_id = p.barrier_id AND o.number = p.number
    RETURNING CASE WHEN o.done + o.failed = o.size THEN o.done ELSE 0 END AS uncounted
)
SELECT coalesce(sum(uncounted), 0)::int AS uncounted FROM moved;

-- name: reopen_barrier (barrier: completed | partial_failure | failed | cancelled -> open)
UPDATE flowstone.barriers b
   SET status = 'open', round = %(round)s, done = b.done - %(uncounted)s, failed = CASE WHEN %(keep)s THEN b.failed ELSE 0 END, error = NULL,
       closed_at = NULL
 WHERE b.id = %(barrier)s AND b.status <> 'open' AND b.round < %(round)s
RETURNING b.*;

-- --- sweeps and retention -------------------------------------------------------------------------------------------------------

-- name: barriers_in_need
-- Open barriers that nobody works for although there is work: hands are lacking since there are more slots, or all stand aside; and
-- those whose step is no more, whatever became of its run.
SELECT b.id, b.ended AS orphan FROM (
    -- Lookups, not EXISTS: of that the planner may make tables of all that there is.
    SELECT b.*, coalesce((SELECT s.finished_at IS NOT NULL FROM flowstone.steps s WHERE s.id = b.step_id), true) AS ended,
           coalesce((SELECT r.status = 'running' AND NOT r.paused FROM flowstone.runs r WHERE r.id = b.run_id), false) AS goes_on,
           (SELECT p.number FROM flowstone.barrier_pages p WHERE p.barrier_id = b.id AND p.next < p.size LIMIT 1) IS NOT NULL AS pages,
           (SELECT i.index FROM flowstone.items i WHERE i.barrier_id = b.id AND i.status = 'retry' AND i.due_at <= flowstone.now()
             LIMIT 1) IS NOT NULL AS due,
           (SELECT i.index FROM flowstone.items i WHERE i.barrier_id = b.id AND i.status = 'retry' AND i.due_at = 'infinity'
             LIMIT 1) IS NOT NULL AS held,
           (SELECT s.id FROM flowstone.steps s WHERE s.barrier_id = b.id AND s.phase = 'item'
               AND (s.status = 'running' OR s.status = 'ready' AND s.parked IS DISTINCT FROM 'idle') LIMIT 1) IS NOT NULL AS busy
      FROM flowstone.barriers b WHERE b.status = 'open') b
 WHERE b.ended OR b.goes_on AND (NOT b.busy AND (b.pages OR b.due OR b.held)
    OR b.pages AND
    -- use: lacking_hands_of_b
       > 0)
 ORDER BY b.id LIMIT %(limit)s;

-- name: drop_keys
-- Digests tell equal keys apart while a barrier is filled; then they go, a batch at a time.
WITH one AS (
    SELECT b.id FROM flowstone.barriers b WHERE b.keyed AND b.sealed AND b.status <> 'open' ORDER BY b.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM flowstone.barrier_keys k USING one o WHERE k.barrier_id = o.id AND k.digest = ANY (ARRAY(
        SELECT d.digest FROM flowstone.barrier_keys d WHERE d.barrier_id = (SELECT id FROM one) LIMIT %(limit)s))
    RETURNING k.digest
), emptied AS (
    UPDATE flowstone.barriers b SET keyed = false FROM one o WHERE b.id = o.id AND (SELECT count(*) FROM gone) < %(limit)s
)
SELECT (SELECT count(*) FROM gone) AS dropped FROM one;

-- name: bury_barriers
-- One batch of what barriers of runs that are gone have left. One whose step's value still stands stays: the value may be its results.
WITH one AS (
    SELECT b.id FROM flowstone.barriers b
     WHERE b.abandoned AND NOT EXISTS (SELECT 1 FROM flowstone.asset_values v WHERE v.step_id = b.step_id)
     ORDER BY b.id LIMIT 1 FOR UPDATE SKIP LOCKED
), gone_items AS (
    DELETE FROM flowstone.items i USING one o WHERE i.barrier_id = o.id AND i.index = ANY (ARRAY(
        SELECT d.index FROM flowstone.items d WHERE d.barrier_id = (SELECT id FROM one) LIMIT %(limit)s))
    RETURNING i.index
), gone_keys AS (
    DELETE FROM flowstone.barrier_keys k USING one o WHERE k.barrier_id = o.id AND k.digest = ANY (ARRAY(
        SELECT d.digest FROM flowstone.barrier_keys d WHERE d.barrier_id = (SELECT id FROM one) LIMIT %(limit)s))
    RETURNING k.digest
), last AS (
    SELECT o.id FROM one o WHERE (SELECT count(*) FROM gone_items) < %(limit)s AND (SELECT count(*) FROM gone_keys) < %(limit)s
), gone_pages AS (
    DELETE FROM flowstone.barrier_pages p USING last l WHERE p.barrier_id = l.id
), gone_claims AS (
    DELETE FROM flowstone.item_claims c USING last l WHERE c.barrier_id = l.id
), gone AS (
    DELETE FROM flowstone.barriers b USING last l WHERE b.id = l.id
)
SELECT (SELECT count(*) FROM gone_items) AS items, (SELECT count(*) FROM last) AS barriers FROM one;
