-- Gives a step that is parked, only because it lost too many leases, its lease again, so that the late report of its last
-- dispatch is concluded like any other; the task's recorded end, if any, is taken back with it.
-- The parked row's lock decides against an operator and against settle.
-- $1 at timestamptz, $2 task_id bigint, $3 step_no int, $4 token uuid, $5 dispatch int, $6 session_id int, $7 namespace_id int
with locked as materialized (
  select parked.ctid as tid, parked.* from parked
  where task_id = $2 and step_no = $3 and last_token = $4 and dispatches = $5 and reason = 'lease_expired'
  for update
),
gone as (
  delete from parked where ctid = any (array(select tid from locked))
),
reopened as (
  delete from task_end where task_id in (select task_id from locked) and state = 'error' returning task_id
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, states)
  select coalesce($1, clock_timestamp()), $7, 'task_reopened', array_agg(task_id), array_agg('in_progress'::text) from reopened having count(*) > 0
)
insert into lease (task_id, step_no, lane_id, session_id, token, attempts, failures, dispatches, epoch, event_no, lost_leases,
  undelivered, released, skipped, started, runnable_at, first_started_at, granted_at, until, lease_duration)
select task_id, step_no, lane_id, $6, last_token, attempts, failures, dispatches, epoch, event_no, lost_leases,
  undelivered, released, skipped, started, parked_at, first_started_at, coalesce($1, clock_timestamp()),
  coalesce($1, clock_timestamp()), interval '0'
from locked
