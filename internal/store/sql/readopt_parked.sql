-- Gives a step that is parked, only because it lost too many leases, its lease again, so that the late report of its last
-- dispatch is concluded like any other. reopen_tasks.sql follows, in a fresh snapshot, and takes the task's end back.
-- The parked row's lock decides against an operator and against settle.
-- $1 at timestamptz, $2 task_id bigint, $3 step_no int, $4 token uuid, $5 dispatch int, $6 session_id int
with locked as materialized (
  select parked.ctid as tid, parked.* from parked
  where task_id = $2 and step_no = $3 and last_token = $4 and dispatches = $5 and reason = 'lease_expired'
  for update
),
gone as (
  delete from parked where ctid = any (array(select tid from locked))
),
-- the outcome that is now reported takes the place of the loss, which then was none; the history keeps the record of it
found as (
  delete from step_failure
  where task_id = $2 and step_no = $3 and dispatch = $5 and outcome = 'lost_lease' and exists (select from locked)
  returning 1
)
insert into lease (task_id, step_no, lane_id, session_id, token, attempts, failures, dispatches, epoch, event_no, lost_leases,
  undelivered, released, skipped, started, runnable_at, first_started_at, granted_at, until, lease_duration)
select task_id, step_no, lane_id, $6, last_token, attempts, failures, dispatches, epoch, event_no, lost_leases - (select count(*) from found),
  undelivered, released, skipped, started, parked_at, first_started_at, coalesce($1, clock_timestamp()),
  coalesce($1, clock_timestamp()), interval '0'
from locked
