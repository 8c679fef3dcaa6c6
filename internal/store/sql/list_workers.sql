-- A namespace's worker sessions by worker_id, those after a place: live ones, those that ended less than a day ago, and those
-- that still hold leases. $1 namespace_id int, $2 after_worker text, $3 after_session int, $4 limit int, $5 handler text (null:
-- any), $6 at timestamptz
select worker_session.session_id, worker_id, instance_id, handlers, max_in_flight, held.leases, labels, build_id, client_info,
  -- Its server speaks for it, until it is closed; one that was closed for its silence had not been heard of since. (Of NULLs, least
  -- and greatest take no notice: a server without a row says nothing.)
  opened_at, greatest(worker_session.seen_at, case when replica.seen_at is not null then least(closed_at, replica.seen_at) end) as seen_at,
  drained_at, closed_at
from worker_session
left join replica on replica.replica_id = worker_session.replica_id
cross join lateral (
  select count(*)::int as leases from lease where lease.session_id = worker_session.session_id
) held
where namespace_id = $1 and (worker_id, worker_session.session_id) > ($2, $3::int) and ($5::text is null or $5 = any (handlers))
  -- one that its server had no time to close ended when it was last seen
  and (coalesce(closed_at, greatest(worker_session.seen_at, replica.seen_at)) > coalesce($6::timestamptz, now()) - interval '1 day' or held.leases > 0)
order by worker_id, worker_session.session_id
limit $4
