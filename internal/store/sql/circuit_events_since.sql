-- Events that may not have been seen by whoever looked when xid was the oldest transaction under way: all those of that one and
-- of later ones. So none is missed that commits late, and some come twice.
-- $1 namespace_id int, $2 circuit text[] (null: all), $3 xid text
select e.event_id, c.name, e.recorded_at, e.generation, e.from_state::text, e.to_state::text, e.cause::text, e.open_until, e.wave,
  e.task_id, e.step_no, e.dispatch, e.worker_ids, e.actor, e.reason, e.hold_from, e.hold_until, e.observed, e.failed, e.slow,
  (e.policy).*
from circuit_event e
join circuit c on c.circuit_id = e.circuit_id
where e.namespace_id = $1 and ($2::text[] is null or c.name = any ($2)) and e.xid >= $3::xid8
order by e.event_id
