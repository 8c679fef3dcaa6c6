-- Makes this server the one that grants to a worker's session, raising its epoch: the grants of the server that had it
-- find no session from this commit on (claim.sql). The row is the session's mutex; between instances of one worker, lock_worker.sql is.
-- Answers nothing when another live instance holds the worker_id; one that fell silent, which means that its server did, is closed.
-- $1 namespace_id int, $2 worker_id text, $3 instance_id text, $4 replica_id uuid, $5 max_in_flight int, $6 handlers text[],
-- $7 labels text[], $8 build_id text, $9 client_info text, $10 live_for interval, $11 at timestamptz
with locked as materialized (
  -- all instances, in order, as claims lock them
  select session_id, instance_id, replica_id, closed_at, seen_at
  from worker_session
  where namespace_id = $1 and worker_id = $2
  order by session_id
  for no key update
),
other as materialized (
  select session_id, closed_at is null and coalesce($11::timestamptz, now()) - $10::interval
    < greatest(seen_at, (select replica.seen_at from replica where replica.replica_id = locked.replica_id)) as live
  from locked
  where instance_id <> $3
),
superseded as (
  update worker_session set closed_at = coalesce($11::timestamptz, now()), epoch = epoch + 1
  where session_id in (select session_id from other where not live) and closed_at is null
)
insert into worker_session as w (namespace_id, worker_id, instance_id, replica_id, max_in_flight, handlers, labels, build_id,
  client_info, opened_at, seen_at, pauses)
select $1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce($11::timestamptz, now()), coalesce($11::timestamptz, now()),
  (select namespace.pauses from namespace where namespace.namespace_id = $1)
where not exists (select from other where live)
on conflict (namespace_id, worker_id, instance_id) do update set
  replica_id = excluded.replica_id, epoch = w.epoch + 1, max_in_flight = excluded.max_in_flight, handlers = excluded.handlers,
  labels = excluded.labels, build_id = excluded.build_id, client_info = excluded.client_info, seen_at = excluded.seen_at,
  opened_at = excluded.opened_at, closed_at = null, pauses = excluded.pauses -- a drain is for the life of the instance
returning w.session_id, w.epoch, coalesce($11::timestamptz, now()) as at
