-- The stored failures of every step.
select task_id, step_no, dispatch, outcome::text as outcome, attempt, failures, lost_leases::int as lost_leases, epoch, event_no,
  session_id, ended_at, (extract(epoch from base_delay) * 1000000)::bigint as base_delay,
  (extract(epoch from jitter) * 1000000)::bigint as jitter, next_retry_at, coalesce(delay_source::text, '') as delay_source,
  coalesce(error_code, '') as error_code
from step_failure
order by task_id, step_no, dispatch
