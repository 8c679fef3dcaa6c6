-- Removes a task's own deadline. $1 task_id bigint
delete from deadline
where task_id = $1 and step_no = 0 and due_at = (select task.deadline from task where task.task_id = $1)
