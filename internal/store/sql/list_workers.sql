-- A namespace's worker sessions by worker_id, those after a place: live ones, those that ended less than a day ago, and those
-- that still hold leases. $1 namespace_id int, $2 after_worker text, $3 after_session int, $4 limit int, $5 handler text (null:
-- any), $6 at timestamptz
select worker_session.session_id, worker_id, instance_id, handlers, max_in_flight, held.leases, labels, build_id, client_info,
  opened_at, seen_at, drained_at, closed_at
from worker_session
cross join lateral (
  select count(*)::int as leases from lease where lease.session_id = worker_session.session_id
) held
where namespace_id = $1 and (worker_id, worker_session.session_id) > ($2, $3::int) and ($5::text is null or $5 = any (handlers))
  -- one that its server had no time to close ended when it was last seen
  and (coalesce(closed_at, seen_at) > coalesce($6::timestamptz, now()) - interval '1 day' or held.leases > 0)
order by worker_id, worker_session.session_id
limit $4
