-- Parks the waiting steps of a task whose deadline has passed, or one step that has been retried for too long. Running
-- ones end by their leases (lease.stop_at). A row that somebody holds is passed by: the deadline is looked at again.
-- The end is asked for once more: another server that found the same deadline may have put it off.
-- ready and backoff rows are never updated, so what is locked here is what is deleted here.
-- $1 at timestamptz, $2 task_id bigint, $3 step_no int (0: all), $4 namespace_id int
with deadline_of as materialized (
  select $3 = 0 and deadline_end($2, $1) <= coalesce($1, now()) as has_passed
),
overdue_ready as materialized (
  select ready.ctid as tid, ready.* from ready
  where ready.task_id = $2
    and ((select has_passed from deadline_of) or $3 <> 0 and ready.step_no = $3 and elapsed_end($2, $3, ready.first_started_at, $1) <= coalesce($1, now()))
  order by ready.step_no
  for update skip locked
),
overdue_backoff as materialized (
  select backoff.ctid as tid, backoff.* from backoff
  where backoff.task_id = $2
    and ((select has_passed from deadline_of) or $3 <> 0 and backoff.step_no = $3 and elapsed_end($2, $3, backoff.first_started_at, $1) <= coalesce($1, now()))
  order by backoff.step_no
  for update skip locked
),
from_ready as (
  delete from ready where ctid = any (array(select tid from overdue_ready)) returning 1
),
from_backoff as (
  delete from backoff where ctid = any (array(select tid from overdue_backoff)) returning 1
),
overdue as materialized (
  select step_no, lane_id, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released, skipped,
    started, first_started_at, coalesce($1, clock_timestamp()) as at
  from overdue_ready
  union all
  select step_no, lane_id, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released, skipped,
    started, first_started_at, coalesce($1, clock_timestamp())
  from overdue_backoff
),
stopped as (
  insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch, event_no,
    lost_leases, undelivered, released, skipped, started, first_started_at)
  select $2, step_no, lane_id, 'deadline_exceeded', 'DEADLINE_EXCEEDED', at, attempts, failures, dispatches, epoch, event_no + 1,
    lost_leases, undelivered, released, skipped, started, first_started_at
  from overdue
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, step_nos, event_nos, dispatches, epochs, attempts, failures,
    lost_leases, states, error_codes)
  select max(at), $4, 'parked', array_agg($2::bigint), array_agg(step_no), array_agg(event_no + 1), array_agg(dispatches),
    array_agg(epoch), array_agg(attempts), array_agg(failures), array_agg(lost_leases), array_agg('parked'::text),
    array_agg('DEADLINE_EXCEEDED'::text)
  from overdue having count(*) > 0
)
select must_move((select count(*) from from_ready) + (select count(*) from from_backoff), (select count(*)::int from overdue)) as parked
