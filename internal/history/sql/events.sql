-- Every event of every step, in the order in which each step lived them. Late reports, which are no events, come last.
select coalesce(entry.task_id, 0) as task_id, coalesce(entry.step_no, 0) as step_no, coalesce(entry.event_no, 0) as event_no, history.recorded_at, history.kind::text as kind,
  coalesce(history.outcome::text, '') as outcome, coalesce(entry.dispatch, 0) as dispatch, coalesce(entry.epoch, 0) as epoch,
  entry.session_id, coalesce(entry.attempts, 0) as attempts, coalesce(entry.failures, 0) as failures,
  coalesce(entry.lost_leases, 0)::int as lost_leases, coalesce(entry.state, '') as state,
  coalesce(entry.delay_source, '') as delay_source,
  (extract(epoch from entry.base_delay) * 1000000)::bigint as base_delay,
  (extract(epoch from entry.jitter) * 1000000)::bigint as jitter,
  entry.next_retry_at, coalesce(entry.error_code, '') as error_code
from history
cross join lateral unnest(history.task_ids, history.step_nos, history.event_nos, history.dispatches, history.epochs,
    history.session_ids, history.attempts, history.failures, history.lost_leases, history.states, history.delay_sources,
    history.base_delays, history.jitters, history.next_retry_ats, history.error_codes)
  as entry (task_id, step_no, event_no, dispatch, epoch, session_id, attempts, failures, lost_leases, state, delay_source,
    base_delay, jitter, next_retry_at, error_code)
where history.step_nos is not null
order by 1, 2, entry.event_no = 0, 3, history.recorded_at
