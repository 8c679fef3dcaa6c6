-- Locks a task's parked rows, in order: nobody re-opens the task until commit. $1 task_id bigint
select count(*)::int from (select step_no from parked where task_id = $1 order by step_no for update) locked
