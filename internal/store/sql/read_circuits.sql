-- Circuits of a namespace as they stand, by name. Takes no locks: what time has made of one is shown whether or not it was recorded.
-- $1 at timestamptz, $2 namespace_id int, $3 name text[] (null: all), $4 state text[] (null: all), $5 waiting int (at least),
-- $6 after_name text, $7 limit int
select c.circuit_id, c.name, (n.now_is).state::text as state, (n.now_is).generation, (n.now_is).since, (n.now_is).cause::text as cause,
  (n.now_is).open_until, (n.now_is).open_for, (n.now_is).hold_reason, (n.now_is).hold_actor, (n.now_is).hold_from, (n.now_is).hold_until,
  sum_of((calls.in_window).observed) as observed, sum_of((calls.in_window).failed) as failed, sum_of((calls.in_window).slow) as slow,
  failing.workers as failing_workers,
  (n.now_is).probes_passed, (n.now_is).wave, (n.now_is).wave_passed, running.steps as in_flight, waiting.steps as waiting,
  barred.worker_ids, barred.untils, c.created_at, (c.policy).*, (policy_of.in_force).*
from circuit c
cross join lateral (select coalesce($1, now()) as at) as now_at
cross join lateral (
  select circuit_policy_in_force(c.policy, namespace.circuit_defaults) as in_force from namespace where namespace.namespace_id = $2
) as policy_of
cross join lateral (select circuit_at(circuit_at(c, now_at.at), now_at.at) as now_is offset 0) as n
cross join lateral (
  select circuit_window_at((n.now_is).calls, (policy_of.in_force).window_duration, now_at.at) as in_window offset 0
) as calls
cross join lateral (
  select count(*)::int as workers from circuit_worker w
  where w.circuit_id = c.circuit_id and sum_of((circuit_window_at(w.calls, (policy_of.in_force).window_duration, now_at.at)).failed) > 0
) as failing
cross join lateral (select count(*)::int as steps from lease where lease.circuit_id = c.circuit_id) as running
cross join lateral (select circuit_waiting(c.circuit_id, now_at.at, 10000) as steps) as waiting
cross join lateral (
  select array_agg(w.worker_id order by w.worker_id) as worker_ids, array_agg(w.barred_until order by w.worker_id) as untils
  from circuit_worker w where w.circuit_id = c.circuit_id and w.barred_until > now_at.at
) as barred
where c.namespace_id = $2 and ($3::text[] is null or c.name = any ($3)) and ($4::text[] is null or (n.now_is).state::text = any ($4))
  and c.name > $6 and waiting.steps >= $5
order by c.name
limit $7
