-- Stops grants to a worker's session: from this commit on a claim finds no session (claim.sql). 
-- $1 namespace_id int, $2 worker_id text, $3 instance_id text, $4 at timestamptz
update worker_session set drained_at = coalesce(drained_at, $4, now())
where namespace_id = $1 and worker_id = $2 and instance_id = $3
returning session_id, epoch
