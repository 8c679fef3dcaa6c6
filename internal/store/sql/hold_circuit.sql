-- Holds a circuit that this transaction has locked for itself, from now or from later on; an earlier hold is replaced.
-- $1 at timestamptz, $2 circuit_id int, $3 from timestamptz (null, or past: now), $4 until timestamptz (null: until released), $5 reason text,
-- $6 actor text
with asked as materialized (
  select c as before, now_at.at, greatest($3, now_at.at) as hold_from
  from (select circuit from circuit where circuit_id = $2) as found (c)
  cross join lateral (select coalesce($1, clock_timestamp()) as at) as now_at
),
turned as materialized (
  select before, at, hold_from, turn.after
  from asked
  cross join lateral (
    select case when hold_from <= at and (before).state <> 'held' then circuit_turned(before, 'held', at, 'hold') else before end as after offset 0
  ) as turn
),
held as (
  update circuit c set
    state = (t.after).state, entered = (t.after).entered, since = (t.after).since, open_until = (t.after).open_until,
    probes_passed = (t.after).probes_passed, wave = (t.after).wave, wave_no = (t.after).wave_no, wave_passed = (t.after).wave_passed,
    calls = (t.after).calls, generation = (t.before).generation + 1, cause = 'hold',
    hold_from = t.hold_from, hold_until = $4, hold_reason = $5, hold_actor = $6
  from turned t
  where c.circuit_id = (t.before).circuit_id
  returning c.circuit_id, c.namespace_id, c.generation, c.state, c.open_until, c.policy
)
insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, open_until, actor, reason,
  hold_from, hold_until, policy)
select h.circuit_id, h.namespace_id, h.generation, t.at, (t.before).state, h.state, 'hold', h.open_until, $6, $5,
  t.hold_from, $4,
  circuit_policy_in_force(h.policy, n.circuit_defaults)
from held h cross join turned t join namespace n on n.namespace_id = h.namespace_id
