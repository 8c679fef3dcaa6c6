-- Locks leases whose time is up and says what became of them. A lease that a report or another server holds is passed by:
-- whoever holds it decides. A heartbeat that came in meanwhile has moved `until`, and the row no longer qualifies.
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 token uuid[]; sorted by (task_id, step_no)
select
  l.task_id, l.step_no, l.token, l.lane_id, l.session_id, l.dispatches,
  case
    when l.stop_at <= coalesce($1, clock_timestamp()) then 'deadline_exceeded'
    when l.confirmed_at + l.run_timeout <= coalesce($1, clock_timestamp()) then 'timed_out'
    when l.confirmed_at is null then 'undelivered'
    else 'lost_lease'
  end as outcome,
  coalesce(l.circuit_id, 0) as circuit_id
from unnest($2::bigint[], $3::int[], $4::uuid[]) as expired (task_id, step_no, token)
cross join lateral (
  select lease.*
  from lease
  where lease.task_id = expired.task_id and lease.step_no = expired.step_no and lease.token = expired.token
    and (lease.until <= coalesce($1, clock_timestamp())
      or lease.confirmed_at + lease.run_timeout <= coalesce($1, clock_timestamp())
      or lease.stop_at <= coalesce($1, clock_timestamp()))
  limit 1
  for update skip locked
) l
