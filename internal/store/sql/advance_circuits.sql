-- Records what time alone has made of circuits that this transaction has locked for itself: an open one whose time is up
-- begins to be probed, a planned hold begins or ends. Mostly it changes nothing.
-- $1 at timestamptz, $2 circuit_id int[]
with moved as materialized (
  select c as before, first.now as first, second.now as second, policy_of.in_force, now_at.at
  from unnest($2::int[]) as wanted (circuit_id)
  cross join lateral (select coalesce($1, clock_timestamp()) as at) as now_at
  cross join lateral (select circuit from circuit where circuit.circuit_id = wanted.circuit_id limit 1) as found (c)
  cross join lateral (select circuit_at(c, now_at.at) as now offset 0) as first
  cross join lateral (select circuit_at(first.now, now_at.at) as now offset 0) as second
  cross join lateral (
    select circuit_policy_in_force((c).policy, n.circuit_defaults) as in_force
    from namespace n where n.namespace_id = (c).namespace_id limit 1
  ) as policy_of
  where (first.now).generation <> (c).generation
),
changed as (
  -- One possible plan: a join would be planned for the number of circuits there are.
  update circuit c set (state, generation, entered, since, cause, open_until, open_for, hold_from, hold_until, hold_reason,
    hold_actor, probes_passed, wave, wave_no, wave_passed, calls) = (
    select (m.second).state, (m.second).generation, (m.second).entered, (m.second).since, (m.second).cause,
      (m.second).open_until, (m.second).open_for, (m.second).hold_from, (m.second).hold_until, (m.second).hold_reason,
      (m.second).hold_actor, (m.second).probes_passed, (m.second).wave, (m.second).wave_no, (m.second).wave_passed, (m.second).calls
    from moved m where (m.before).circuit_id = c.circuit_id)
  where c.circuit_id = any (array(select (before).circuit_id from moved))
)
insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, actor, reason,
  hold_from, hold_until, policy)
select (turn.after).circuit_id, (turn.after).namespace_id, (turn.after).generation, moved.at, (turn.before).state,
  (turn.after).state, (turn.after).cause,
  (hold.of).hold_actor, (hold.of).hold_reason, (hold.of).hold_from, (hold.of).hold_until, moved.in_force
from moved
cross join lateral (values (moved.before, moved.first), (moved.first, moved.second)) as turn (before, after)
-- A hold that is only planned has no part in the end of the open time.
cross join lateral (select case when (turn.after).cause in ('hold', 'hold_ended') then turn.before end as of) as hold
where (turn.after).generation <> (turn.before).generation
order by (turn.after).circuit_id, (turn.after).generation
