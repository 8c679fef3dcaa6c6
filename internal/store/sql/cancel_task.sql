-- Ends every unfinished step of a task, blocked ones included, whose live rows this transaction holds (lock_task.sql).
-- A running step's ending keeps its lease's token without a digest: a later report under it finds no outcome of its own.
-- $1 at timestamptz, $2 task_id bigint, $3 locked int (live rows), $4 namespace_id int, $5 actor text, $6 reason text
with from_ready as (
  delete from ready where task_id = $2
  returning step_no, attempts, failures, dispatches, lost_leases, epoch, event_no
),
from_backoff as (
  delete from backoff where task_id = $2
  returning step_no, attempts, failures, dispatches, lost_leases, epoch, event_no
),
from_parked as (
  delete from parked where task_id = $2
  returning step_no, attempts, failures, dispatches, lost_leases, epoch, event_no
),
from_lease as (
  delete from lease where task_id = $2
  returning step_no, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, confirmed_at, circuit_id
),
taken as materialized (
  select step_no, attempts, failures, dispatches, lost_leases, epoch, event_no, null::int as session_id, null::uuid as token,
         null::timestamptz as confirmed_at, null::int as circuit_id
  from from_ready
  union all
  select step_no, attempts, failures, dispatches, lost_leases, epoch, event_no, null, null, null, null from from_backoff
  union all
  select step_no, attempts, failures, dispatches, lost_leases, epoch, event_no, null, null, null, null from from_parked
  union all
  select step_no, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, confirmed_at, circuit_id from from_lease
),
unfinished as materialized (
  select step.step_no, coalesce(taken.attempts, 0) as attempts, coalesce(taken.failures, 0) as failures,
    coalesce(taken.dispatches, 0) as dispatches, coalesce(taken.lost_leases, 0)::smallint as lost_leases,
    coalesce(taken.epoch, 1) as epoch, coalesce(taken.event_no, 0) + 1 as event_no, taken.session_id, taken.token,
    taken.confirmed_at, now_at.at
  from step
  cross join (select coalesce($1, clock_timestamp()) as at) as now_at
  left join taken on taken.step_no = step.step_no
  where step.task_id = $2
    and not exists (select from step_end where step_end.task_id = $2 and step_end.step_no = step.step_no)
  order by step.step_no
),
ended as (
  insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token,
    started_at, ended_at, actor, reason)
  select $2, step_no, 'cancelled', attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, confirmed_at,
    at, $5, $6
  from unfinished
),
noted as (
  insert into task_end (task_id, state, ended_at)
  select $2, 'cancelled', max(at) from unfinished having count(*) > 0
  -- it may have ended in error before
  on conflict (task_id) do update set state = excluded.state, ended_at = excluded.ended_at
  returning ended_at
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, actor, reason, task_ids, step_nos, event_nos, dispatches, epochs,
    session_ids, attempts, failures, lost_leases, states)
  select max(at), $4, 'cancelled', $5, $6, array_agg($2::bigint), array_agg(step_no), array_agg(event_no), array_agg(dispatches),
    array_agg(epoch), array_agg(session_id), array_agg(attempts), array_agg(failures), array_agg(lost_leases),
    array_agg('cancelled'::text)
  from unfinished having count(*) > 0
),
recorded_end as (
  insert into history (recorded_at, namespace_id, kind, actor, reason, task_ids, states)
  select ended_at, $4, 'task_ended', $5, $6, array[$2::bigint], array['cancelled'] from noted
)
select null::int as step_no, null::int as session_id, null::uuid as token, null::int as dispatch, 0 as circuit_id,
  must_move((select count(*) from taken), $3::int) as moved, (select count(*)::int from unfinished) as cancelled
union all
select step_no, session_id, token, dispatches, coalesce(circuit_id, 0), null, null from taken where token is not null
