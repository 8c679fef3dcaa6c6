-- The lanes of handlers and what stands in each: the lowest seq that is ready (NULL: none), the lowest one of a step that came
-- back from a dispatch, and the earliest instant a backing-off step is due; with its circuit and that one's generation (0: it has
-- none).
--
-- Rows up to a lane's after_seq are passed by, for the sake of the dead ones among them, which an old snapshot may keep by the
-- million. The caller has learnt that nothing new can appear there from the seq drawn last and the transactions in progress
-- (internal/engine/look.go). Only what comes back from a dispatch still can, and has an index of its own.
-- $1 namespace_id int, $2 handler text[], $3 lane_id int[], $4 after_seq bigint[]: lanes that are not in $3 are read whole
select lane.lane_id, lane.namespace_id, lane.handler, lane.circuit, lane.priority, coalesce(lane.circuit_id, 0),
  coalesce(its_circuit.generation, 0), first_ready.seq, first_returned.seq,
  first_due.due_at, now() as at,
  -- The snapshot is older than the reading of the sequence: who has drawn a seq up to it may be none of these transactions.
  (select coalesce(pg_sequence_last_value('ready_seq'), 0)) as drawn,
  pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest, pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next
from lane
left join lateral (
  select ready.seq
  from ready
  where ready.lane_id = lane.lane_id and ready.seq > coalesce(($4::bigint[])[array_position($3::int[], lane.lane_id)], 0)
  order by ready.lane_id, ready.seq limit 1
) first_ready on true
left join lateral (
  select ready.seq from ready where ready.lane_id = lane.lane_id and ready.last_token is not null order by ready.lane_id, ready.seq limit 1
) first_returned on true
left join lateral (
  select backoff.due_at from backoff where backoff.lane_id = lane.lane_id order by backoff.lane_id, backoff.due_at limit 1
) first_due on true
left join lateral (
  select circuit.generation from circuit where circuit.circuit_id = lane.circuit_id limit 1
) its_circuit on true
where lane.namespace_id = $1 and lane.handler = any ($2)
