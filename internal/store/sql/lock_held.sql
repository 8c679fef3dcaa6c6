-- Locks leases by token, to end them without a result. One that is gone is absent.
-- $1 unconfirmed boolean (a lease that its worker has confirmed meanwhile is left to it), $2 task_id bigint[], $3 step_no int[],
-- $4 token uuid[]; sorted by (task_id, step_no): the lock order
select l.task_id, l.step_no, l.token, l.lane_id, l.session_id, l.dispatches, '' as outcome,
  coalesce(l.circuit_id, 0) as circuit_id
from unnest($2::bigint[], $3::int[], $4::uuid[]) as held (task_id, step_no, token)
cross join lateral (
  select lease.*
  from lease
  where lease.task_id = held.task_id and lease.step_no = held.step_no and lease.token = held.token
    and (not $1::boolean or lease.confirmed_at is null)
  limit 1
  for update
) l
