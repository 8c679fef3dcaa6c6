-- Where a step stands, in one snapshot. No row: there is no such step.
-- $1 task_id bigint, $2 step_no int
select
  task.namespace_id,
  ended.state::text as ended_state,
  task_end.state::text as task_end_state,
  case when ready.task_id is not null then 'ready' when backoff.task_id is not null then 'backoff'
    when lease.task_id is not null then 'lease' when parked.task_id is not null then 'parked' end as place,
  coalesce(ready.failures, backoff.failures, parked.failures, 0) as failures
from step
cross join lateral (select t.namespace_id from task t where t.task_id = $1 limit 1) task
left join lateral (select e.state from step_end e where e.task_id = $1 and e.step_no = $2 limit 1) ended on true
left join lateral (select e.state from task_end e where e.task_id = $1 limit 1) task_end on true
left join lateral (select r.task_id, r.failures from ready r where r.task_id = $1 and r.step_no = $2 limit 1) ready on true
left join lateral (select b.task_id, b.failures from backoff b where b.task_id = $1 and b.step_no = $2 limit 1) backoff on true
left join lateral (select l.task_id from lease l where l.task_id = $1 and l.step_no = $2 limit 1) lease on true
left join lateral (select p.task_id, p.failures from parked p where p.task_id = $1 and p.step_no = $2 limit 1) parked on true
where step.task_id = $1 and step.step_no = $2
