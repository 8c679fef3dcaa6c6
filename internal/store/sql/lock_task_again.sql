-- Locks, in a fresh snapshot, what has appeared since lock_task.sql, waiting for nobody: these locks come out of order.
-- When every row that stands is locked, nobody else can change the task until commit: a new live row comes only of
-- another one of the same task. $1 task_id bigint
select count(*)::int as standing, count(locked.one)::int as locked, count(*) filter (where standing.is_free)::int as can_run
from (
  select step_no, true as is_free from ready where task_id = $1
  union all select step_no, true from backoff where task_id = $1
  union all select step_no, true from lease where task_id = $1
  union all select step_no, false from parked where task_id = $1
  order by step_no
) standing
left join lateral (
  select * from (select 1 as one from ready where task_id = $1 and step_no = standing.step_no for update skip locked) r
  union all select * from (select 1 from backoff where task_id = $1 and step_no = standing.step_no for update skip locked) b
  union all select * from (select 1 from lease where task_id = $1 and step_no = standing.step_no for update skip locked) l
  union all select * from (select 1 from parked where task_id = $1 and step_no = standing.step_no for update skip locked) p
) locked on true
