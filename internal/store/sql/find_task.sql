-- A task's namespace and recorded end. No row: there is no such task. $1 task_id bigint
select task.namespace_id, task_end.state::text as end_state
from task
left join lateral (select e.state from task_end e where e.task_id = task.task_id limit 1) task_end on true
where task.task_id = $1
