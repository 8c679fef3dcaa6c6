-- The lanes of handlers and what stands in each: the lowest seq that is ready (NULL: none) and the earliest instant a
-- backing-off step is due (NULL: none), with the generation of its circuit (0: it has none). $1 namespace_id int, $2 handler text[]
select lane.lane_id, lane.namespace_id, lane.handler, lane.circuit, lane.priority, coalesce(lane.circuit_id, 0), coalesce(its_circuit.generation, 0), first_ready.seq, first_due.due_at, now() as at
from lane
left join lateral (
  select ready.seq from ready where ready.lane_id = lane.lane_id order by ready.lane_id, ready.seq limit 1
) first_ready on true
left join lateral (
  select backoff.due_at from backoff where backoff.lane_id = lane.lane_id order by backoff.lane_id, backoff.due_at limit 1
) first_due on true
left join lateral (
  select circuit.generation from circuit where circuit.circuit_id = lane.circuit_id limit 1
) its_circuit on true
where lane.namespace_id = $1 and lane.handler = any ($2)
