-- Forgets what workers saw of circuits whose window has passed, and who was barred until an instant that has. It waits for nobody:
-- a circuit that somebody has locked is looked at another time. $1 at timestamptz
with idle as materialized (
  select c.circuit_id, (circuit_policy_in_force(c.policy, n.circuit_defaults)).window_duration as width
  from circuit c join namespace n on n.namespace_id = c.namespace_id
  where exists (select from circuit_worker w where w.circuit_id = c.circuit_id)
  for update of c skip locked
)
delete from circuit_worker w
using idle
where w.circuit_id = idle.circuit_id and (w.barred_until is null or w.barred_until <= coalesce($1, now()))
  and sum_of((circuit_window_at(w.calls, idle.width, coalesce($1, now()))).observed) = 0
