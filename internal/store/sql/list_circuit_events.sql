-- The record of a namespace's circuits, newest first.
-- $1 namespace_id int, $2 circuit text (null: all), $3 from timestamptz, $4 to timestamptz, $5 before_event bigint, $6 limit int
select e.event_id, c.name, e.recorded_at, e.generation, e.from_state::text, e.to_state::text, e.cause::text, e.open_until, e.wave,
  e.task_id, e.step_no, e.dispatch, e.worker_ids, e.actor, e.reason, e.hold_from, e.hold_until, e.observed, e.failed, e.slow,
  (e.policy).*
from circuit_event e
join circuit c on c.circuit_id = e.circuit_id
where e.namespace_id = $1 and ($2::text is null or c.name = $2) and ($3::timestamptz is null or e.recorded_at >= $3)
  and ($4::timestamptz is null or e.recorded_at < $4) and e.event_id < $5
order by e.event_id desc
limit $6
