-- Locks the lease rows of tokens, so that the statements after it act on rows that nobody else can move.
-- A token whose lease is gone is simply absent. Arguments come sorted by (task_id, step_no): the lock order.
-- $1 task_id bigint[], $2 step_no int[], $3 token uuid[]
select l.token
from unnest($1::bigint[], $2::int[], $3::uuid[]) as report (task_id, step_no, token)
cross join lateral (
  select lease.token
  from lease
  where lease.task_id = report.task_id and lease.step_no = report.step_no and lease.token = report.token
  limit 1                                      -- one possible plan: a look-up per token
  for update
) l
