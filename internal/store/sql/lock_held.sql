-- Locks leases by token, to end them without a result. One that is gone is absent.
-- $1 task_id bigint[], $2 step_no int[], $3 token uuid[]; sorted by (task_id, step_no): the lock order
select l.task_id, l.step_no, l.token, l.lane_id, l.session_id, l.dispatches, '' as outcome
from unnest($1::bigint[], $2::int[], $3::uuid[]) as held (task_id, step_no, token)
cross join lateral (
  select lease.*
  from lease
  where lease.task_id = held.task_id and lease.step_no = held.step_no and lease.token = held.token
  limit 1
  for update
) l
