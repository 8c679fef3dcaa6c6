-- Raises the number of every open session of a namespace, so that only servers who know of the pause are granted anything from
-- this commit on, and tells when. Sessions are locked in order, as claims do, and those under way are waited for: whatever they
-- grant is granted before that instant. None opens meanwhile (lock_pauses.sql); one that is closed gets its number when it opens.
-- $1 at timestamptz, $2 namespace_id int, $3 pauses int
with locked as materialized (
  select session_id
  from worker_session
  where namespace_id = $2 and closed_at is null
  order by session_id
  for no key update
),
fenced as (
  update worker_session set pauses = $3 where session_id = any (array(select session_id from locked))
)
select coalesce($1, clock_timestamp())
from (select count(*) from locked) as all_of_them -- the clock is read once all are locked
