-- Locks the parked rows of several tasks, in order. $1 task_id bigint[]
select count(*)::int
from (select 1 from parked where task_id = any ($1::bigint[]) order by task_id, step_no for update) locked
