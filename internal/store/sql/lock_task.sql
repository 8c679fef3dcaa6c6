-- Locks every live row of a task, in the order of its steps. A row that moved while it was waited for is missed here and
-- found by lock_task_again.sql. $1 task_id bigint
select count(*)
from (
  select step_no from ready where task_id = $1
  union all select step_no from backoff where task_id = $1
  union all select step_no from lease where task_id = $1
  union all select step_no from parked where task_id = $1
  order by step_no
) standing
cross join lateral (
  select * from (select 1 from ready where task_id = $1 and step_no = standing.step_no for update) r
  union all select * from (select 1 from backoff where task_id = $1 and step_no = standing.step_no for update) b
  union all select * from (select 1 from lease where task_id = $1 and step_no = standing.step_no for update) l
  union all select * from (select 1 from parked where task_id = $1 and step_no = standing.step_no for update) p
) locked
