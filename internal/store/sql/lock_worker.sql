-- Lets instances of one worker open their sessions one after another: each then sees in its own snapshot whether another
-- lives. Their rows cannot be locked instead, since a new instance has none yet. And lets none open while its namespace is being
-- paused (lock_pauses.sql): the session's row, read in the next statement, has a pause before it or is seen by it. Held until
-- the transaction ends.
-- $1 namespace_id int, $2 worker_id text
select pg_advisory_xact_lock_shared(hashtext('tasker.pauses'), $1::int), pg_advisory_xact_lock($1::int, hashtext($2::text))
