-- Forgets pauses that ended before an instant. $1 before timestamptz, $2 limit int
delete from pause where pause_id in (select pause_id from pause where coalesce(ended_at, until) < $1 order by pause_id limit $2)
