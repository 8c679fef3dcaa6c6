-- Steps as the contract shows them, in one snapshot: the readiness rows with definition, failure, lease and payloads beside
-- them. $1 at timestamptz, $2 task_id bigint, $3 step_id bigint[], $4 with_payloads boolean
select
  readiness.workflow_step_id, readiness.task_id, readiness.name, readiness.current_state, readiness.dependencies_satisfied,
  readiness.retry_eligible, readiness.ready_for_execution, readiness.blocked_by, readiness.total_parents,
  readiness.completed_parents, readiness.attempts, readiness.retry_limit, readiness.dispatches, readiness.lost_leases,
  readiness.epoch, readiness.next_retry_at, readiness.last_failure_at, readiness.last_attempted_at, readiness.last_started_at,
  make_interval(secs => readiness.backoff_request_seconds::float8) as backoff_request, readiness.error_code, readiness.circuit,
  readiness.waiting_for, readiness.waiting_until, lane.handler, lane.priority::int as priority, parked.reason::text as parked_reason,
  failure.error_code as failure_code, failure.message, failure.error_class, failure.http_status, failure.stack_trace,
  failure.details,
  session.worker_id, session.instance_id, lease.dispatches as lease_dispatch, lease.granted_at, lease.confirmed_at,
  lease.until, ended.ended_at, parent.names as depends_on,
  case when $4 then ended.results end as results,
  case when $4 then checkpoint.body end as checkpoint,
  case when $4 then step.handler_config end as handler_config
from steps_of_task_at($2::bigint, $3, $1) as readiness
join step on step.task_id = $2 and step.step_no = (readiness.workflow_step_id - $2)::int
join lane on lane.lane_id = step.lane_id
left join parked on parked.task_id = $2 and parked.step_no = step.step_no
left join lease on lease.task_id = $2 and lease.step_no = step.step_no
left join worker_session as session on session.session_id = lease.session_id
left join step_end as ended on ended.task_id = $2 and ended.step_no = step.step_no
left join lateral (
  select f.* from step_failure f
  where f.task_id = $2 and f.step_no = step.step_no and f.epoch = readiness.epoch and f.outcome <> 'lost_lease'
    and ended.state is distinct from 'complete' -- a success clears it
  order by f.dispatch desc
  limit 1
) failure on true
left join lateral (
  select c.body from checkpoint c where $4 and c.task_id = $2 and c.step_no = step.step_no limit 1
) checkpoint on true
left join lateral (
  select array_agg(p.name order by p.step_no) as names
  from unnest(step.parents) as u (step_no)
  join step as p on p.task_id = $2 and p.step_no = u.step_no
) parent on true
order by readiness.workflow_step_id
