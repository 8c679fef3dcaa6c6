-- Puts steps that this transaction has taken (take_steps.sql) back as new: a fresh epoch, nothing counted against them.
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 lane_id int[], $5 dispatches int[], $6 epoch int[],
-- $7 event_no int[], $8 started boolean[] (all as taken), $9 wait interval[] (null: due now), $10 namespace_id int,
-- $11 actor text, $12 reason text
with given as materialized (
  select taken.*, now_at.at, case when wait > interval '0' then now_at.at + wait end as due_at
  from (select coalesce($1, clock_timestamp()) as at) as now_at
  cross join unnest($2::bigint[], $3::int[], $4::int[], $5::int[], $6::int[], $7::int[], $8::boolean[], $9::interval[])
    as taken (task_id, step_no, lane_id, dispatches, epoch, event_no, started, wait)
),
due as (
  insert into ready (lane_id, task_id, step_no, dispatches, epoch, event_no, started, runnable_at)
  select lane_id, task_id, step_no, dispatches, epoch + 1, event_no + 1, started, at
  from given where due_at is null
  returning lane_id, seq
),
deferred as (
  insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started)
  select lane_id, due_at, task_id, step_no, 0, 0, dispatches, epoch + 1, event_no + 1, 0, 0, 0, 0, started
  from given where due_at is not null
  returning lane_id, due_at
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, actor, reason, task_ids, step_nos, event_nos, dispatches, epochs,
    attempts, failures, lost_leases, states, next_retry_ats)
  select max(at), $10, 'retried', $11, $12, array_agg(task_id), array_agg(step_no), array_agg(event_no + 1),
    array_agg(dispatches), array_agg(epoch + 1), array_agg(0), array_agg(0), array_agg(0::smallint),
    array_agg(case when due_at is null then 'ready' else 'backoff' end), array_agg(due_at)
  from given having count(*) > 0
)
select lane_id, min(seq) as seq, count(*)::int as count, null::timestamptz as due_at from due group by lane_id
union all
select lane_id, null, count(*)::int, min(due_at) from deferred group by lane_id
