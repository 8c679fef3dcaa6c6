-- Every circuit as it stands, and how many steps of it may be granted now by the function that the claim asks. Limits of how
-- many run or start have a say in that too.
select c.circuit_id, c.name, c.state::text as state, c.generation, c.open_until, c.wave,
  circuit_room(c, policy_of.in_force, now()) as room,
  (policy_of.in_force).max_in_flight is not null or (policy_of.in_force).rate is not null as is_limited,
  (circuit_at(c, now())).generation <> c.generation as is_due
from circuit c
join namespace n on n.namespace_id = c.namespace_id
cross join lateral (select circuit_policy_in_force(c.policy, n.circuit_defaults) as in_force offset 0) as policy_of
order by c.circuit_id
