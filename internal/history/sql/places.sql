-- Where every step stands: its live row or its ending. A step that stands twice comes twice.
select task_id, step_no, place, attempts, failures, dispatches, epoch, event_no, lost_leases::int as lost_leases,
  undelivered::int as undelivered, released::int as released, skipped::int as skipped, started, session_id, due_at, confirmed, reason
from (
  select task_id, step_no, 'ready' as place, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
    skipped, started, null::int as session_id, null::timestamptz as due_at, false as confirmed, '' as reason
  from ready
  union all
  select task_id, step_no, 'backoff', attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
    skipped, started, null, due_at, false, ''
  from backoff
  union all
  select task_id, step_no, 'lease', attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
    skipped, started, session_id, null, confirmed_at is not null, ''
  from lease
  union all
  select task_id, step_no, 'parked', attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
    skipped, started, null, null, false, reason::text
  from parked
  union all
  select task_id, step_no, state::text, attempts, failures, dispatches, epoch, event_no, lost_leases, 0, 0,
    0, true, session_id, null, false, ''
  from step_end
) as standing
order by task_id, step_no
