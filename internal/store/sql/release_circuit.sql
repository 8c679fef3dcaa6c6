-- Ends the hold or the openness of a circuit that this transaction has locked for itself: it is probed next, never simply
-- closed. A hold that is only planned is dropped. Anything else is left as it is.
-- $1 at timestamptz, $2 circuit_id int, $3 actor text, $4 reason text
with asked as materialized (
  select c as before, now_at.at
  from (select circuit from circuit where circuit_id = $2) as found (c)
  cross join lateral (select coalesce($1, clock_timestamp()) as at) as now_at
  where (c).state in ('held', 'open') or (c).hold_from is not null
),
turned as materialized (
  select before, at, turn.after
  from asked
  cross join lateral (
    select case when (before).state in ('held', 'open') then circuit_turned(before, 'half_open', at, 'release') else before end as after offset 0
  ) as turn
),
released as (
  update circuit c set
    state = (t.after).state, entered = (t.after).entered, since = (t.after).since, open_until = (t.after).open_until,
    probes_passed = (t.after).probes_passed, wave = (t.after).wave, wave_no = (t.after).wave_no, wave_passed = (t.after).wave_passed,
    calls = (t.after).calls, generation = (t.before).generation + 1, cause = 'release',
    hold_from = null, hold_until = null, hold_reason = null, hold_actor = null
  from turned t
  where c.circuit_id = (t.before).circuit_id
  returning c.circuit_id, c.namespace_id, c.generation, c.state, c.policy
)
insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, actor, reason, policy)
select r.circuit_id, r.namespace_id, r.generation, t.at, (t.before).state, r.state, 'release', $3, $4,
  circuit_policy_in_force(r.policy, n.circuit_defaults)
from released r cross join turned t join namespace n on n.namespace_id = r.namespace_id
