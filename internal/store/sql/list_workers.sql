-- A namespace's worker sessions above $2, by id. $1 namespace_id int, $2 after_session int, $3 limit int, $4 handler text (null: any)
select worker_session.session_id, worker_id, instance_id, handlers, max_in_flight, held.leases, labels, build_id, client_info,
  opened_at, seen_at, drained_at, closed_at
from worker_session
cross join lateral (
  select count(*)::int as leases from lease where lease.session_id = worker_session.session_id
) held
where namespace_id = $1 and worker_session.session_id > $2 and ($4::text is null or $4 = any (handlers))
order by worker_session.session_id
limit $3
