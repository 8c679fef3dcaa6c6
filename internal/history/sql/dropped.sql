-- What retention has dropped: ranges of tasks (two ids), and days of history (none).
select case when cardinality(task_ids) = 2 then task_ids[1] end as first_id, case when cardinality(task_ids) = 2 then task_ids[2] end as end_id
from history where kind = 'retention' and reason <> 'worker_session'
union all
select null, null from partition_drop where partition like 'history%'
