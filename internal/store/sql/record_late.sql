-- Keeps the outcome of a report that came too late as evidence on its dispatch: the first is kept, further ones counted.
-- It changes nothing about the step. $1 at timestamptz, $2 namespace_id int, $3 task_id bigint, $4 step_no int, $5 dispatch int,
-- $6 outcome text, $7 digest bytea, $8 error_code text, $9 message text, $10 results text, $11 session_id int
with kept as (
  insert into late_report as l (task_id, step_no, dispatch, outcome, digest, error_code, message, results, recorded_at)
  select $3, $4, $5, $6::dispatch_outcome, $7, $8, $9, $10, coalesce($1, clock_timestamp())
  -- only for a dispatch that was granted: an invented token leaves no dispatch behind that never was
  where exists (select from task where task.task_id = $3 and task.namespace_id = $2)
    and $5 <= coalesce(
      (select step_end.dispatches from step_end where step_end.task_id = $3 and step_end.step_no = $4),
      (select lease.dispatches from lease where lease.task_id = $3 and lease.step_no = $4),
      (select ready.dispatches from ready where ready.task_id = $3 and ready.step_no = $4),
      (select backoff.dispatches from backoff where backoff.task_id = $3 and backoff.step_no = $4),
      (select parked.dispatches from parked where parked.task_id = $3 and parked.step_no = $4),
      0)
  on conflict (task_id, step_no, dispatch) do update set reports = l.reports + 1
  returning l.task_id, l.step_no, l.dispatch, l.reports
)
insert into history (recorded_at, namespace_id, kind, outcome, task_ids, step_nos, event_nos, dispatches, session_ids)
select coalesce($1, clock_timestamp()), $2, 'late', $6::dispatch_outcome, array[task_id], array[step_no], array[0], array[dispatch], array[$11::int]
from kept where reports = 1
