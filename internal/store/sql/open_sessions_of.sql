-- The open sessions that are a server's by the database, of those that were opened some time ago: it must have each of them.
-- $1 replica_id uuid, $2 opened_before interval, $3 at timestamptz
select namespace_id, session_id, epoch
from worker_session
where replica_id = $1 and closed_at is null and seen_at < coalesce($3, now()) - $2::interval
