-- The leases whose time is up, as candidates: lock_expired.sql judges each again under its lock. The lease table is small
-- (what runs now), so it is read whole; an index on `until` would make every heartbeat dearer.
-- $1 at timestamptz, $2 limit int
select l.task_id, l.step_no, l.token, l.lane_id, coalesce(l.circuit_id, 0) as circuit_id,
  coalesce(l.stop_at <= coalesce($1, now()), false) as is_overdue
from lease l
where l.until <= coalesce($1, now())
   or l.confirmed_at + l.run_timeout <= coalesce($1, now())
   or l.stop_at <= coalesce($1, now())
limit $2
