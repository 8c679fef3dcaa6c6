-- Ended tasks of a partition, to be deleted one batch after another. $1 part bigint, $2 ended_before timestamptz, $3 limit int
select task_end.task_id
from task_end
where task_end.task_id >= $1::bigint << 42 and task_end.task_id < ($1::bigint + 1) << 42 and task_end.ended_at < $2
order by task_end.task_id
limit $3
