-- What stands in each lane, for metrics. Takes no locks. Each count ends at $2, so that a backlog of millions costs no more
-- than one of thousands.
--
-- $1 at timestamptz, $2 limit int
with lane_now as (
  select lane.lane_id, namespace.name as namespace, lane.handler, lane.circuit, lane.priority, coalesce($1, now()) as at
  from lane
  join namespace using (namespace_id)
)
select l.namespace, l.handler, l.circuit, l.priority,
  fresh.steps + due.steps as ready,
  waiting.steps as waiting,
  -- seq rises with the time a step became runnable, to the grain of one claim
  greatest(l.at - least(first_fresh.runnable_at, first_due.due_at), interval '0') as oldest_due_age
from lane_now l
cross join lateral (
  select count(*) as steps from (select from ready where ready.lane_id = l.lane_id limit $2) counted
) fresh
cross join lateral (
  select count(*) as steps
  from (select from backoff where backoff.lane_id = l.lane_id and backoff.due_at <= l.at limit $2) counted
) due
cross join lateral (
  select count(*) as steps
  from (select from backoff where backoff.lane_id = l.lane_id and backoff.due_at > l.at limit $2) counted
) waiting
left join lateral (
  select ready.runnable_at from ready where ready.lane_id = l.lane_id order by ready.lane_id, ready.seq limit 1
) first_fresh on true
left join lateral (
  select backoff.due_at from backoff
  where backoff.lane_id = l.lane_id and backoff.due_at <= l.at
  order by backoff.lane_id, backoff.due_at limit 1
) first_due on true
order by l.namespace, l.handler, l.circuit, l.priority
