-- Lets instances of one worker open their sessions one after another: each then sees in its own snapshot whether another
-- lives. Their rows cannot be locked instead, since a new instance has none yet. Held until the transaction ends.
-- $1 namespace_id int, $2 worker_id text
select pg_advisory_xact_lock($1::int, hashtext($2::text))
