-- Ends a session whose last stream ended, unless it has moved on meanwhile. $1 session_id int, $2 epoch int, $3 at timestamptz
update worker_session set closed_at = coalesce($3, now()) where session_id = $1 and epoch = $2 and closed_at is null
