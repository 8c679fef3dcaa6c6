-- Says that sessions are alive, for those that this server still has. Answers them.
-- $1 session_id int[], $2 epoch int[], $3 at timestamptz
update worker_session set seen_at = coalesce($3, now())
from unnest($1::int[], $2::int[]) as mine (session_id, epoch)
where worker_session.session_id = mine.session_id and worker_session.epoch = mine.epoch
returning worker_session.session_id, worker_session.drained_at is not null as drained
