-- Lets pauses of a namespace follow one another, and no session open meanwhile (lock_worker.sql). Held until the transaction ends.
-- $1 namespace_id int
select pg_advisory_xact_lock(hashtext('tasker.pauses'), $1::int)
