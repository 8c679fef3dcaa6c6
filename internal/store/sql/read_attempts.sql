-- Dispatches of a step below $3, the newest first. $1 task_id bigint, $2 step_no int, $3 before_dispatch int, $4 limit int
select dispatch, case when counted then attempt else 0 end as attempt, epoch, coalesce(outcome, '') as outcome, worker_id, instance_id,
  granted_at, started_at, ended_at, error_code, message, error_class, http_status, stack_trace, details,
  make_interval(secs => delay_seconds::float8) as delay, delay_source, delay_clamped, next_retry_at,
  late_outcome, late_error_code, late_message, late_results, late_recorded_at, late_reports
from step_attempts_v
where task_id = $1 and step_no = $2 and dispatch < $3
order by dispatch desc
limit $4
