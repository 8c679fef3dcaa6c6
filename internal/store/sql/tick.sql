-- All that a server looks for when nothing tells it to, in one statement a second: when the next lease ends (NULL: nothing
-- runs), whether a deadline has passed, and whether any step is parked, whose task may have come to its end in error without a
-- note (unsettled.sql); what stands in lanes, as probe_lanes.sql tells it; and of some sessions that this server has, what became
-- of each. They are read only: claims hold their rows, and this waits for none. Every few seconds the server says in its own row that
-- it is alive, and with it all its sessions. And of the namespaces whose lanes are looked into, the number of their pauses: another
-- one than the server knows has it read them (read_pauses.sql).
--
-- $1 at timestamptz; lanes to look into: $2 namespace_id int[], $3 handler text[]; sessions: $4 session_id int[], $5 epoch int[];
-- $6 leases boolean: whether to read them, dead ones that an old snapshot keeps and all; $7 lane_id int[], $8 after_seq bigint[]:
-- rows of these lanes up to it are passed by (probe_lanes.sql); $9 replica_id uuid: the server that says it is alive, NULL: not now
with alive as (
  insert into replica (replica_id, started_at, seen_at)
  select $9::uuid, coalesce($1::timestamptz, now()), coalesce($1::timestamptz, now())
  where $9::uuid is not null
  on conflict (replica_id) do update set seen_at = excluded.seen_at
),
-- One row each, with an array a column: lanes and sessions have nothing to do with one another.
session as (
  select array_agg(mine.session_id) as id, array_agg(coalesce(w.epoch = mine.epoch and w.open, false)) as kept,
    array_agg(coalesce(w.drained, false)) as drained, array_agg(coalesce(w.superseded, false)) as superseded
  from unnest($4::int[], $5::int[]) as mine (session_id, epoch)
  left join lateral (
    select w.epoch, w.closed_at is null as open, w.drained_at is not null as drained,
      exists (
        select from worker_session other
        where other.namespace_id = w.namespace_id and other.worker_id = w.worker_id and other.session_id <> w.session_id
          and other.opened_at > w.opened_at and other.closed_at is null
      ) as superseded
    from worker_session w
    where w.session_id = mine.session_id
    limit 1                                    -- one possible plan: a look-up per session
  ) w on true
),
probed as (
  select array_agg(l.lane_id) as lane_id, array_agg(l.namespace_id) as namespace_id, array_agg(l.handler) as handler,
    array_agg(l.circuit) as circuit, array_agg(l.priority) as priority, array_agg(coalesce(l.circuit_id, 0)) as circuit_id,
    array_agg(coalesce((select circuit.generation from circuit where circuit.circuit_id = l.circuit_id), 0)) as circuit_generation,
    array_agg((
      select ready.seq from ready
      where ready.lane_id = l.lane_id and ready.seq > coalesce(($8::bigint[])[array_position($7::int[], l.lane_id)], 0)
      order by ready.lane_id, ready.seq limit 1)) as seq,
    array_agg((
      select ready.seq from ready where ready.lane_id = l.lane_id and ready.last_token is not null
      order by ready.lane_id, ready.seq limit 1)) as returned,
    array_agg((select backoff.due_at from backoff where backoff.lane_id = l.lane_id order by backoff.lane_id, backoff.due_at limit 1)) as due_at
  from unnest($2::int[], $3::text[]) as asked (namespace_id, handler)
  cross join lateral (
    select lane.lane_id, lane.namespace_id, lane.handler, lane.circuit, lane.priority, lane.circuit_id
    from lane
    where lane.namespace_id = asked.namespace_id and lane.handler = asked.handler
    offset 0                                   -- one possible plan: a look-up per handler
  ) l
),
paused as (
  select array_agg(n.namespace_id) as namespace_id, array_agg(n.pauses) as pauses
  from (select distinct namespace_id from unnest($2::int[]) as given (namespace_id)) as asked
  cross join lateral (
    select namespace.namespace_id, namespace.pauses from namespace where namespace.namespace_id = asked.namespace_id limit 1
  ) n
)
select
  case when $6 then (select min(least(until, confirmed_at + run_timeout, stop_at)) from lease) end as expires_at,
  coalesce($1, now()) as at,
  exists (select from deadline where due_at <= coalesce($1, now())) as overdue,
  exists (select from parked) as parked,
  now() as probed_at, probed.lane_id, probed.namespace_id, probed.handler, probed.circuit, probed.priority, probed.circuit_id,
  probed.circuit_generation, probed.seq, probed.returned, probed.due_at,
  -- The snapshot is older than the reading of the sequence: who has drawn a seq up to it may be none of these transactions.
  (select coalesce(pg_sequence_last_value('ready_seq'), 0)) as drawn,
  pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest, pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next,
  session.id, session.kept, session.drained, session.superseded, paused.namespace_id, paused.pauses
from probed, session, paused
