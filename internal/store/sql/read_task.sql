-- A task with its state: read_tasks.sql for one. By a single id, each partitioned table is pruned when it is planned.
-- $1 at timestamptz, $2 task_id bigint, $3 with_context boolean
select
  task.task_id, namespace.name as namespace, task.name, task.template_name, task.template_version, task.labels,
  submit_key.key, case when $3 then task.context end as context, task.not_before, task.deadline, task.created_at,
  task.created_by,
  -- in the instant between a last failure and its settle, the failure's own time
  case when execution.status in ('complete', 'error', 'cancelled') then coalesce(task_end.ended_at, failed.last_at) end as ended_at,
  task.trace_context,
  execution.status, execution.total_steps, execution.pending_steps, execution.in_progress_steps, execution.completed_steps,
  execution.failed_steps, execution.ready_steps, execution.waiting_for_retry_steps, execution.cancelled_steps,
  execution.execution_status, execution.recommended_action, execution.completion_percentage::float8, execution.health_status
from task_state_at($2::bigint, $1) as execution
cross join lateral (select t.* from task t where t.task_id = $2::bigint limit 1) task
join namespace on namespace.namespace_id = task.namespace_id
left join lateral (select e.ended_at from task_end e where e.task_id = $2::bigint limit 1) task_end on true
left join lateral (select max(p.parked_at) as last_at from parked p where p.task_id = $2::bigint) failed on true
left join lateral (select k.key from submit_key k where k.task_id = $2::bigint limit 1) submit_key on true
