-- How many steps a task has. No row: there is no such task. $1 task_id bigint
select step_count from task where task_id = $1
