-- Concludes successful runs under their tokens, and wakes what waited for them. A token whose lease is gone is passed by.
-- Safe because deleting a lease is what locks it, and step_end's key is the last guard against recording twice.
--
-- The delete finds a lease by its key and token, not by a ctid from the snapshot. So when a heartbeat updates it in between, the
-- delete waits for that, looks at the new version, and takes it, with what it says now. Arguments come sorted by
-- (task_id, step_no), and the plan can only go through them one by one, which is the lock order: see below.
--
-- An arrival at a join is a row RETURNED by the delete, never one of the input: a token that comes twice arrives once. Counters are
-- bumped in one order, root stripes after all others; the arrival that closes one sees it, since concurrent arrivals queue on the
-- counter's row.
-- $1 at timestamptz (null: the clock), $2 task_id bigint[], $3 $4 step_no int, $5 token uuid[], $6 $7 digest bytea,
-- $8 $9 results text, $10 namespace_id int
-- Where two numbers stand beside a column, the first is the value of all rows, and the second an array of theirs: one is null.
with gone as (
  -- One possible plan, a look-up per token: `= any` is no join clause that a scan of the whole index could be merged by, and
  -- without one lease could only come first by being read whole, which is forbidden.
  delete from lease
  using unnest($2::bigint[], $4::int[], $5::uuid[], $7::bytea[], $9::text[]) as report (task_id, step_no, token, digest, results)
  where lease.task_id = any (array[report.task_id]) and lease.step_no = coalesce($3::int, report.step_no)
    and lease.token = report.token
  returning lease.task_id, lease.step_no, lease.event_no, lease.dispatches, lease.epoch, lease.session_id, lease.attempts,
    lease.failures, lease.lost_leases, coalesce($1, clock_timestamp()) as ended_at, lease.token,
    coalesce(lease.confirmed_at, lease.granted_at) as started_at, coalesce($6::bytea, report.digest) as digest,
    coalesce($8::text, report.results) as results
),
ended as (
  insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id,
    token, digest, started_at, ended_at, results)
  select task_id, step_no, 'complete', attempts + 1, failures, dispatches, lost_leases, epoch, event_no + 1, session_id,
    token, digest, started_at, ended_at, results
  from gone
),
parent as materialized (
  -- What is looked for in most rows in vain stands first.
  select g.task_id, s.children, s.join_children, g.token, g.ended_at, g.attempts + 1 as attempts, g.dispatches, g.lost_leases,
    g.epoch, s.retry_limit, s.join_stripe, s.join_need
  from gone g
  cross join lateral (
    select step.retry_limit, step.children, step.join_children, step.join_stripe, step.join_need
    from step
    where step.task_id = g.task_id and step.step_no = g.step_no
    limit 1
  ) s
),
arrival as (
  select p.task_id, c.step_no, c.stripe, c.need, count(*)::int as arrived
  from parent p
  cross join lateral unnest(p.join_children, p.join_stripe, p.join_need) as c (step_no, stripe, need)
  where p.join_children is not null
  group by p.task_id, c.step_no, c.stripe, c.need
),
counted as (
  insert into join_wait as j (task_id, step_no, stripe, need, arrived)
  select task_id, step_no, stripe, need, arrived from arrival order by task_id, step_no, stripe
  on conflict (task_id, step_no, stripe) do update set arrived = j.arrived + excluded.arrived
  returning j.task_id, j.step_no, j.stripe, j.need, j.arrived
),
closed_stripe as (
  select task_id, step_no, count(*)::int as arrived
  from counted where stripe >= 0 and arrived = need
  group by task_id, step_no
),
counted_root as (
  insert into join_wait as j (task_id, step_no, stripe, need, arrived)
  select task_id, step_no, -1, 16, arrived from closed_stripe order by task_id, step_no
  on conflict (task_id, step_no, stripe) do update set arrived = j.arrived + excluded.arrived
  returning j.task_id, j.step_no, j.need, j.arrived
),
-- What the last arrival at a join makes runnable, or ends.
joined as (
  select task_id, step_no from counted where stripe = -1 and arrived = need
  union all
  select task_id, step_no from counted_root where arrived = need
),
finished as (
  insert into task_end (task_id, state, ended_at)
  select task_id, 'complete', coalesce($1, clock_timestamp())
  from (
    -- The task's end is the only child of the only leaf.
    select task_id from parent where children[1] = 2147483647
    union all
    select task_id from joined where step_no = 2147483647
  ) e
  returning task_id
),
woken as (
  insert into ready (lane_id, task_id, step_no, runnable_at)
  select s.lane_id, c.task_id, c.step_no, coalesce($1, clock_timestamp())
  from (
    select p.task_id, c.step_no from parent p cross join lateral unnest(p.children) as c (step_no) where p.children[1] < 2147483647
    union all
    select task_id, step_no from joined where step_no < 2147483647
  ) c
  cross join lateral (
    select step.lane_id from step where step.task_id = c.task_id and step.step_no = c.step_no limit 1
  ) s
  returning lane_id, seq
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, outcome, task_ids, step_nos, event_nos, dispatches, epochs,
    session_ids, attempts, failures, lost_leases)
  select max(ended_at), $10, 'concluded', 'success', array_agg(task_id), array_agg(step_no), array_agg(event_no + 1),
    array_agg(dispatches), array_agg(epoch), array_agg(session_id), array_agg(attempts + 1), array_agg(failures),
    array_agg(lost_leases)
  from gone having count(*) > 0
),
recorded_end as (
  insert into history (recorded_at, namespace_id, kind, task_ids, states)
  select coalesce($1, clock_timestamp()), $10, 'task_ended', array_agg(task_id), array_agg('complete'::text)
  from finished having count(*) > 0
)
-- A step that has ended has no `what`, and its retry_limit stands as count.
select null::text as what, null::bigint as task_id, token, null::int as lane_id, null::bigint as seq, retry_limit as count, ended_at,
  attempts, dispatches, lost_leases, epoch
from parent
union all
select 'woken', null, null, lane_id, min(seq), count(*)::int, null, null, null, null, null from woken group by lane_id
union all
-- a task with a parked step may have come to its end in error by this
select distinct 'settle', e.task_id, null::uuid, null::int, null::bigint, 1, null::timestamptz, null::int, null::int, null::int, null::int
from gone e
cross join lateral (select parked.task_id from parked where parked.task_id = e.task_id limit 1) p
-- nothing is parked most of the time: then no step pays for the look
where exists (select from parked)
