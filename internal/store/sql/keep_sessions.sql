-- Says that sessions are alive, for those that this server still has, and tells what became of each.
-- $1 session_id int[], $2 epoch int[], $3 at timestamptz
with kept as (
  update worker_session set seen_at = coalesce($3, now())
  from unnest($1::int[], $2::int[]) as mine (session_id, epoch)
  where worker_session.session_id = mine.session_id and worker_session.epoch = mine.epoch and worker_session.closed_at is null
  returning worker_session.session_id
)
select w.session_id, w.session_id in (select session_id from kept) as kept, w.drained_at is not null as drained,
  exists (
    select from worker_session other
    where other.namespace_id = w.namespace_id and other.worker_id = w.worker_id and other.session_id <> w.session_id
      and other.opened_at > w.opened_at and other.closed_at is null
  ) as superseded
from worker_session w
where w.session_id = any ($1)
