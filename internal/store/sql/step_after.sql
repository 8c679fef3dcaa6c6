-- A step as the answer to a report shows it. $1 task_id bigint, $2 step_no int, $3 dispatch int (whose delay is shown), $4 at timestamptz
select
  case when e.state is not null then e.state::text
    when l.task_id is not null then 'in_progress'
    when coalesce(r.failures, b.failures, p.failures, 0) > 0 or p.task_id is not null then 'error'
    else 'pending' end as state,
  coalesce(e.attempts, l.attempts, r.attempts, b.attempts, p.attempts, 0) as attempts,
  coalesce(e.dispatches, l.dispatches, r.dispatches, b.dispatches, p.dispatches, 0) as dispatches,
  coalesce(e.lost_leases, l.lost_leases, r.lost_leases, b.lost_leases, p.lost_leases, 0)::int as lost_leases,
  coalesce(e.epoch, l.epoch, r.epoch, b.epoch, p.epoch, 1) as epoch,
  s.retry_limit, p.task_id is not null as parked, coalesce(p.error_code, f.error_code, '') as error_code,
  coalesce(e.ended_at, f.ended_at, now()) as recorded_at,
  f.next_retry_at, f.base_delay + f.jitter as applied_delay, f.delay_source::text as delay_source, coalesce(f.delay_clamped, false) as clamped,
  r.task_id is not null or b.due_at <= coalesce($4, now()) as runnable
from step s
left join lateral (select * from step_end where step_end.task_id = $1 and step_end.step_no = $2 limit 1) e on true
left join lateral (select * from lease where lease.task_id = $1 and lease.step_no = $2 limit 1) l on true
left join lateral (select * from ready where ready.task_id = $1 and ready.step_no = $2 limit 1) r on true
left join lateral (select * from backoff where backoff.task_id = $1 and backoff.step_no = $2 limit 1) b on true
left join lateral (select * from parked where parked.task_id = $1 and parked.step_no = $2 limit 1) p on true
left join lateral (
  select * from step_failure where step_failure.task_id = $1 and step_failure.step_no = $2 and step_failure.dispatch = $3 limit 1
) f on true
where s.task_id = $1 and s.step_no = $2
