-- Says that sessions are alive, for those that this server still has, and tells what became of each. Their rows are locked
-- in order, as claims do.
-- $1 session_id int[], $2 epoch int[], $3 at timestamptz
with locked as materialized (
  select own.session_id
  from unnest($1::int[], $2::int[]) as mine (session_id, epoch)
  join worker_session own on own.session_id = mine.session_id
  where own.epoch = mine.epoch and own.closed_at is null
  order by own.session_id
  for no key update of own
),
kept as (
  update worker_session set seen_at = coalesce($3, now())
  where session_id in (select session_id from locked)
  returning session_id
)
select w.session_id, w.session_id in (select session_id from kept) as kept, w.drained_at is not null as drained,
  exists (
    select from worker_session other
    where other.namespace_id = w.namespace_id and other.worker_id = w.worker_id and other.session_id <> w.session_id
      and other.opened_at > w.opened_at and other.closed_at is null
  ) as superseded
from worker_session w
where w.session_id = any ($1)
