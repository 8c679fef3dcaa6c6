-- Forgets servers that fell silent before an instant and whose sessions are forgotten. $1 silent_since timestamptz
delete from replica
where seen_at < $1 and not exists (select from worker_session where worker_session.replica_id = replica.replica_id)
