-- A step as a report left it, for the answer to the same report sent again: a failure's own row tells, whatever the step has
-- done since; a success is the step's end. $1 task_id bigint, $2 step_no int, $3 dispatch int, $4 at timestamptz
select
  case when f.task_id is not null then 'error'
    when e.state is not null then e.state::text
    when l.task_id is not null then 'in_progress'
    when coalesce(r.failures, b.failures, p.failures, 0) > 0 or p.task_id is not null then 'error'
    else 'pending' end as state,
  coalesce(f.attempt, e.attempts, l.attempts, r.attempts, b.attempts, p.attempts, 0) as attempts,
  coalesce(f.dispatch, e.dispatches, l.dispatches, r.dispatches, b.dispatches, p.dispatches, 0) as dispatches,
  coalesce(f.lost_leases, e.lost_leases, l.lost_leases, r.lost_leases, b.lost_leases, p.lost_leases, 0)::int as lost_leases,
  coalesce(f.epoch, e.epoch, l.epoch, r.epoch, b.epoch, p.epoch, 1) as epoch,
  s.retry_limit,
  -- as fail.sql judged it
  case
    when f.task_id is null or f.next_retry_at is not null then null
    when f.outcome = 'deadline_exceeded' then 'deadline_exceeded'
    when f.outcome = 'permanent_failure' or not s.retryable or f.error_code = any (s.non_retryable_codes) then 'permanent'
    else 'exhausted'
  end as park,
  coalesce(f.error_code, p.error_code, '') as error_code,
  coalesce(f.ended_at, e.ended_at, now()) as recorded_at,
  f.next_retry_at, f.base_delay + f.jitter as applied_delay, f.delay_source::text as delay_source, coalesce(f.delay_clamped, false) as clamped,
  r.task_id is not null or b.due_at <= coalesce($4, now()) as runnable
from step s
left join lateral (select * from step_end where step_end.task_id = $1 and step_end.step_no = $2 limit 1) e on true
left join lateral (select * from lease where lease.task_id = $1 and lease.step_no = $2 limit 1) l on true
left join lateral (select * from ready where ready.task_id = $1 and ready.step_no = $2 limit 1) r on true
left join lateral (select * from backoff where backoff.task_id = $1 and backoff.step_no = $2 limit 1) b on true
left join lateral (select * from parked where parked.task_id = $1 and parked.step_no = $2 limit 1) p on true
left join lateral (
  select * from step_failure where step_failure.task_id = $1 and step_failure.step_no = $2 and step_failure.dispatch = $3
    and step_failure.outcome <> 'lost_lease' -- a late success may stand behind one
  limit 1
) f on true
where s.task_id = $1 and s.step_no = $2
