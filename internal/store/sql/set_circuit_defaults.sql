-- Sets a namespace's default policy, all of whose circuits this transaction has locked for itself.
-- $1 at timestamptz, $2 namespace_id int, $3 actor text, $4 reason text, $5 … $18 the fields of circuit_policy, in order
with set_now as (
  update namespace
  set circuit_defaults = row($5::interval, $6::int, $7::float8, $8::interval, $9::float8, $10::int, $11::interval, $12::interval,
    $13::int, $14::int, $15::int, $16::int, $17::float8, $18::boolean)::circuit_policy
  where namespace_id = $2
  returning circuit_defaults
),
touched as (
  update circuit set generation = generation + 1, cause = 'policy', calls = null
  where namespace_id = $2
  returning circuit_id, namespace_id, generation, state, policy, open_until, hold_from, hold_until
)
insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, actor, reason, open_until, hold_from, hold_until, policy)
select t.circuit_id, t.namespace_id, t.generation, coalesce($1, clock_timestamp()), t.state, t.state, 'policy', $3, $4, t.open_until,
  -- a hold that is only planned has no part in it
  case when t.state = 'held' then t.hold_from end, case when t.state = 'held' then t.hold_until end,
  circuit_policy_in_force(t.policy, s.circuit_defaults)
from touched t cross join set_now s
order by t.circuit_id
