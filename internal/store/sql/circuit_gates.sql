-- What circuits let through now, for a server to plan its next claim by: a hint, which the next claim checks under the lock.
-- $1 at timestamptz, $2 circuit_id int[]
select (c).circuit_id, (c).state::text as state, (c).generation, circuit_is_plain(c, policy_of.in_force, now_at.at) as is_plain,
  circuit_room(c, policy_of.in_force, now_at.at) as room, circuit_opens_at(c, policy_of.in_force, now_at.at) as opens_at,
  now_at.at, barred.worker_ids, barred.untils
from unnest($2::int[]) as wanted (circuit_id)
cross join lateral (select coalesce($1, clock_timestamp()) as at) as now_at
cross join lateral (select circuit from circuit where circuit.circuit_id = wanted.circuit_id limit 1) as found (c)
cross join lateral (
  select circuit_policy_in_force((c).policy, n.circuit_defaults) as in_force
  from namespace n where n.namespace_id = (c).namespace_id limit 1
) as policy_of
cross join lateral (
  select array_agg(w.worker_id) as worker_ids, array_agg(w.barred_until) as untils
  from circuit_worker w where w.circuit_id = wanted.circuit_id and w.barred_until > now_at.at
) as barred
