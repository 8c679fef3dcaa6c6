-- Deadlines that have passed, the oldest first. $1 at timestamptz, $2 limit int
select deadline.due_at, deadline.task_id, deadline.step_no, task.namespace_id
from deadline
left join task on task.task_id = deadline.task_id
where deadline.due_at <= coalesce($1, now())
order by deadline.due_at
limit $2
