-- Forgets worker sessions that ended before an instant and hold no lease. One that is opened again meanwhile has a later
-- seen_at, and is spared when its row's lock is had. $1 ended_before timestamptz, $2 limit int
delete from worker_session
where session_id in (
  select old.session_id
  from worker_session old
  where coalesce(old.closed_at, old.seen_at) < $1
    and not exists (select from lease where lease.session_id = old.session_id)
  order by old.session_id
  limit $2
)
  and coalesce(closed_at, seen_at) < $1
