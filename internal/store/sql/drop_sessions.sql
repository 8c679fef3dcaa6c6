-- Forgets worker sessions that ended before an instant and hold no lease, and records that it did: what checks the history
-- must know. One that is not closed ended when it was last heard of: when it was opened, or its server was last seen, which is just
-- now where it is alive. One that is opened again meanwhile has a later seen_at, and is spared when its row's lock is had.
-- $1 ended_before timestamptz, $2 limit int, $3 at timestamptz
with gone as (
  delete from worker_session
  where session_id in (
    select old.session_id
    from worker_session old
    where coalesce(old.closed_at, greatest(old.seen_at, (select r.seen_at from replica r where r.replica_id = old.replica_id))) < $1
      and not exists (select from lease where lease.session_id = old.session_id)
    order by old.session_id
    limit $2
  )
    and coalesce(closed_at, greatest(seen_at, (select r.seen_at from replica r where r.replica_id = worker_session.replica_id))) < $1
  returning session_id
),
recorded as (
  insert into history (recorded_at, kind, reason, task_ids)
  select coalesce($3, clock_timestamp()), 'retention', 'worker_session', '{}' from gone having count(*) > 0
)
select count(*)::int from gone
