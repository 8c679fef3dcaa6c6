-- Sets the policy of a circuit that this transaction has locked for itself. What its window held was measured by the old one.
-- $1 at timestamptz, $2 circuit_id int, $3 actor text, $4 reason text, $5 … $18 the fields of circuit_policy, in order
with set_now as (
  update circuit
  set policy = row($5::interval, $6::int, $7::float8, $8::interval, $9::float8, $10::int, $11::interval, $12::interval, $13::int,
      $14::int, $15::int, $16::int, $17::float8, $18::boolean)::circuit_policy,
    generation = generation + 1, cause = 'policy', calls = null
  where circuit_id = $2
  returning circuit_id, namespace_id, generation, state, policy, open_until, hold_from, hold_until
)
insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, actor, reason, open_until, hold_from, hold_until, policy)
select s.circuit_id, s.namespace_id, s.generation, coalesce($1, clock_timestamp()), s.state, s.state, 'policy', $3, $4, s.open_until,
  -- a hold that is only planned has no part in it
  case when s.state = 'held' then s.hold_from end, case when s.state = 'held' then s.hold_until end,
  circuit_policy_in_force(s.policy, n.circuit_defaults)
from set_now s join namespace n on n.namespace_id = s.namespace_id
