-- The partitions of table task that numbers have moved on from before $1, the oldest first: number, tasks, and how many of
-- them have not ended before $1. $1 ended_before timestamptz
select parts.part, counted.tasks, counted.kept
from (
  select substring(child.relname from '^task_p(\d+)$')::bigint as part
  from pg_inherits
  join pg_class child on child.oid = pg_inherits.inhrelid
  where pg_inherits.inhparent = 'task'::regclass
) parts
cross join lateral (
  select min(rolled_at) as left_at
  from partition_roll
  where first_number >> 28 > parts.part & ((1 << 12) - 1)
) successor
cross join lateral (
  select count(task.task_id) as tasks,
         count(*) filter (where task_end.task_id is null or task_end.ended_at >= $1) as kept
  from task
  left join task_end on task_end.task_id = task.task_id
  where task.task_id >= parts.part << 42 and task.task_id < (parts.part + 1) << 42
) counted
where parts.part is not null and successor.left_at < $1
order by parts.part
