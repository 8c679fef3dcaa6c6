-- The leases of a session, read after its take-over committed. The lease table is small, so it is read whole.
-- $1 session_id int
select l.task_id, l.step_no, l.token, l.dispatches, l.lane_id, l.confirmed_at is not null as confirmed, l.until,
  coalesce(l.circuit_id, 0) as circuit_id
from lease l
where l.session_id = $1
