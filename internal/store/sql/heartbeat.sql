-- Extends leases that this transaction holds (lock_leases.sql). The first heartbeat confirms the delivery: from it on the
-- lease runs for its full duration and the run timeout counts.
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 namespace_id int
with locked as materialized (
  select l.*, coalesce($1, clock_timestamp()) as beat_at
  from unnest($2::bigint[], $3::int[]) as beat (task_id, step_no)
  cross join lateral (
    select lease.ctid as tid, lease.*
    from lease
    where lease.task_id = beat.task_id and lease.step_no = beat.step_no
    limit 1
  ) l
),
extended as (
  update lease set
    until = coalesce($1, clock_timestamp()) + lease_duration,
    event_no = event_no + (confirmed_at is null)::int,
    confirmed_at = coalesce(confirmed_at, $1, clock_timestamp()),
    undelivered = 0,
    started = true
  where ctid = any (array(select tid from locked))
  returning task_id, step_no, until, confirmed_at + run_timeout as run_until, stop_at
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, step_nos, event_nos, dispatches, epochs, session_ids)
  select max(beat_at), $4, 'confirmed', array_agg(task_id), array_agg(step_no), array_agg(event_no + 1),
    array_agg(dispatches), array_agg(epoch), array_agg(session_id)
  from locked where confirmed_at is null having count(*) > 0
)
select task_id, step_no, until, run_until, stop_at from extended
