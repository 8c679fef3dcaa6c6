-- Charges circuits with what reports say of them, and judges each once for the whole batch: it may open, be probed further,
-- go on recovering or close. Runs after lock_circuits.sql, advance_circuits.sql and lock_leases.sql of the same transaction, and
-- before the statements that conclude the leases: the rows it reads are the transaction's own.
--
--   failed     a retryable failure or a run timeout, blamed on the dependency
--   healthy    a success or a permanent failure: the dependency answered
--   slow       either, when the run lasted slow_call_duration
--   blamed     a lost lease, or a failure blamed on the worker: charged to the worker, not to the circuit
--
-- $1 at timestamptz, $2 circuit_id int[] (those locked),
-- $3 task_id bigint[], $4 step_no int[], $5 token uuid[], $6 outcome text[], $7 blame text[], $8 reach boolean[],
-- $9 hint_after interval[], $10 hint_at timestamptz[], $11 run_duration interval[] (null: by the clock): a report each
-- $12 token uuid[], $13 circuit_id int[], $14 calls int[], $15 failed int[], $16 slow int[]: what runs observed besides
with asked as materialized (
  select c as before, policy_of.in_force as policy, coalesce($1, clock_timestamp()) as at
  from unnest($2::int[]) as wanted (circuit_id)
  cross join lateral (select circuit from circuit where circuit.circuit_id = wanted.circuit_id limit 1) as found (c)
  cross join lateral (
    select circuit_policy_in_force((c).policy, n.circuit_defaults) as in_force
    from namespace n where n.namespace_id = (c).namespace_id limit 1
  ) as policy_of
),
reported as materialized (
  select l.*, worker.worker_id, report.outcome, report.token, (a.before).state as state,
    coalesce(l.circuit_generation >= (a.before).entered, false) as is_current,
    report.outcome in ('success', 'permanent_failure') as is_healthy,
    report.outcome in ('retryable_failure', 'timed_out') and report.blame = 'dependency' as is_failed,
    report.outcome = 'lost_lease' or report.blame = 'worker' as is_blamed,
    report.outcome in ('success', 'permanent_failure', 'retryable_failure')
      and coalesce(report.run_duration, a.at - coalesce(l.confirmed_at, l.granted_at)) >= (a.policy).slow_call_duration as is_slow,
    case when report.reach then least(
      coalesce(report.hint_at, a.at + coalesce(report.hint_after, (a.policy).open_duration)),
      a.at + (a.policy).max_open_duration) end as reach_until
  from unnest($3::bigint[], $4::int[], $5::uuid[], $6::text[], $7::text[], $8::boolean[], $9::interval[], $10::timestamptz[], $11::interval[])
    as report (task_id, step_no, token, outcome, blame, reach, hint_after, hint_at, run_duration)
  cross join lateral (
    select lease.task_id, lease.step_no, lease.dispatches, lease.session_id, lease.circuit_id, lease.circuit_generation, lease.probe,
      lease.confirmed_at, lease.granted_at
    from lease
    where lease.task_id = report.task_id and lease.step_no = report.step_no and lease.token = report.token
    limit 1
  ) l
  cross join lateral (select * from asked where (asked.before).circuit_id = l.circuit_id limit 1) a
  left join lateral (select w.worker_id from worker_session w where w.session_id = l.session_id limit 1) worker on true
),
-- What a run observed besides counts when its report does.
charge as materialized (
  select r.circuit_id, coalesce(r.worker_id, '') as worker_id, (r.is_healthy or r.is_failed)::int as observed, r.is_failed::int as failed,
    (coalesce(r.is_slow, false) and (r.is_healthy or r.is_failed))::int as slow, r.is_blamed::int as blamed,
    (r.probe and r.is_current and r.state = 'half_open' and r.is_healthy and r.is_slow is not true)::int as probes_passed,
    (r.probe and r.is_current and r.state = 'half_open' and (r.is_failed or r.is_healthy and r.is_slow is true))::int as probes_failed,
    (r.is_current and r.state = 'recovering' and r.is_healthy and r.is_slow is not true)::int as wave_passed,
    (r.is_current and r.state = 'recovering' and (r.is_failed or r.is_healthy and r.is_slow is true))::int as wave_failed,
    r.reach_until,
    -- the attempt that an event names: one that reaches, else one that failed or was slow, else any
    r.task_id, r.step_no, r.dispatches as dispatch,
    (r.reach_until is not null)::int * 4 + (r.is_failed or coalesce(r.is_slow, false))::int * 2 + coalesce(r.probe, false)::int as weight
  from reported r
  union all
  select seen.circuit_id, coalesce(worker.worker_id, ''), seen.calls, seen.failed, seen.slow, 0, 0, 0, 0, 0, null,
    l.task_id, l.step_no, l.dispatches, (seen.failed > 0)::int
  from unnest($12::uuid[], $13::int[], $14::int[], $15::int[], $16::int[]) as seen (token, circuit_id, calls, failed, slow)
  cross join lateral (
    select lease.task_id, lease.step_no, lease.dispatches, lease.session_id
    from unnest($3::bigint[], $4::int[], $5::uuid[]) as report (task_id, step_no, token)
    cross join lateral (
      select lease.task_id, lease.step_no, lease.dispatches, lease.session_id from lease
      where lease.task_id = report.task_id and lease.step_no = report.step_no and lease.token = report.token
      limit 1
    ) lease
    where report.token = seen.token
    limit 1
  ) l
  left join lateral (select w.worker_id from worker_session w where w.session_id = l.session_id limit 1) worker on true
),
by_worker as materialized (
  select a.before, a.policy, a.at, t.worker_id, worker.barred_until,
    circuit_window_add(worker.calls, (a.policy).window_duration, a.at, t.observed, t.failed, t.blamed) as calls
  from (
    select circuit_id, worker_id, sum(observed + blamed)::int as observed, sum(failed)::int as failed, sum(blamed)::int as blamed
    from charge group by circuit_id, worker_id
  ) t
  cross join lateral (select * from asked where (asked.before).circuit_id = t.circuit_id limit 1) a
  left join lateral (
    select w.calls, w.barred_until from circuit_worker w where w.circuit_id = t.circuit_id and w.worker_id = t.worker_id limit 1
  ) worker on true
),
judged as materialized (
  select a.before, a.policy, a.at, seeing.worker_ids, cause.*,
    circuit_judged(a.before, a.policy, a.at,
      row(t.observed, t.failed, t.slow, t.probes_passed, t.probes_failed, t.wave_passed, t.wave_failed, t.reach_until)::circuit_tally,
      coalesce(cardinality(seeing.worker_ids), 0),
      case when (a.before).state in ('half_open', 'recovering') then circuit_waiting((a.before).circuit_id, a.at, 1) > 0 else false end
    ) as after,
    circuit_window_add((a.before).calls, (a.policy).window_duration, a.at, t.observed, t.failed, t.slow) as seen
  from (
    select circuit_id, sum(observed)::int as observed, sum(failed)::int as failed, sum(slow)::int as slow,
      sum(probes_passed)::int as probes_passed, sum(probes_failed)::int as probes_failed, sum(wave_passed)::int as wave_passed,
      sum(wave_failed)::int as wave_failed, max(reach_until) as reach_until
    from charge group by circuit_id
  ) t
  cross join lateral (select * from asked where (asked.before).circuit_id = t.circuit_id limit 1) a
  cross join lateral (
    select task_id, step_no, dispatch from charge where charge.circuit_id = t.circuit_id order by weight desc, task_id, step_no limit 1
  ) cause
  -- the workers that see it fail
  cross join lateral (
    select array_agg(worker_id order by worker_id) as worker_ids
    from (
      select b.worker_id from by_worker b where (b.before).circuit_id = t.circuit_id and sum_of((b.calls).failed) > 0
      union all
      select w.worker_id from circuit_worker w
      where w.circuit_id = t.circuit_id and sum_of((circuit_window_at(w.calls, (a.policy).window_duration, a.at)).failed) > 0
        and not exists (select from by_worker b where (b.before).circuit_id = w.circuit_id and b.worker_id = w.worker_id limit 1)
      limit 64
    ) seeing
  ) seeing
),
workers as (
  insert into circuit_worker (circuit_id, worker_id, calls, barred_until)
  select (b.before).circuit_id, b.worker_id,
    case when sick.is_barred or j.is_over then null else b.calls end,
    case when sick.is_barred then b.at + (b.policy).open_duration else b.barred_until end
  from by_worker b
  cross join lateral (
    select (judged.after).state <> (judged.before).state or accused.is_new as is_over,
      accused.is_new and b.worker_id = any (judged.worker_ids) as is_accused
    from judged
    cross join lateral (
      select (judged.after).cause = 'workers_barred' and (judged.after).generation <> (judged.before).generation as is_new
    ) accused
    where (judged.before).circuit_id = (b.before).circuit_id
    limit 1
  ) j
  cross join lateral (
    select j.is_accused or sum_of((b.calls).observed) >= (b.policy).min_observations
      and sum_of((b.calls).slow) >= (b.policy).failure_rate_threshold * sum_of((b.calls).observed) as is_barred
  ) sick
  on conflict (circuit_id, worker_id) do update set calls = excluded.calls, barred_until = excluded.barred_until
),
-- Workers that are not in this batch: where too few see it fail, they are barred; where it came to another state, all begin afresh.
others as (
  update circuit_worker w set calls = null, barred_until = (
    select case when w.worker_id = any (j.worker_ids) and (j.after).state = (j.before).state then j.at + (j.policy).open_duration
      else w.barred_until end
    from judged j where (j.before).circuit_id = w.circuit_id)
  where w.circuit_id = any (array(
      select (before).circuit_id from judged
      where (after).generation <> (before).generation and ((after).state <> (before).state or (after).cause = 'workers_barred')))
    and not exists (select from by_worker b where (b.before).circuit_id = w.circuit_id and b.worker_id = w.worker_id limit 1)
),
changed as (
  -- One possible plan: a join would be planned for the number of circuits there are.
  update circuit c set (state, generation, entered, since, cause, open_until, open_for, probes_passed, wave, wave_no, wave_passed, calls) = (
    select (j.after).state, (j.after).generation, (j.after).entered, (j.after).since, (j.after).cause, (j.after).open_until,
      (j.after).open_for, (j.after).probes_passed, (j.after).wave, (j.after).wave_no, (j.after).wave_passed, (j.after).calls
    from judged j where (j.before).circuit_id = c.circuit_id)
  where c.circuit_id = any (array(select (before).circuit_id from judged))
),
recorded as (
  insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, open_until, wave,
    task_id, step_no, dispatch, worker_ids, observed, failed, slow, policy)
  select (after).circuit_id, (after).namespace_id, (after).generation, at, (before).state, (after).state, (after).cause,
    (after).open_until, nullif((after).wave, 0), task_id, step_no, dispatch, worker_ids, sum_of((seen).observed),
    sum_of((seen).failed), sum_of((seen).slow), policy
  from judged
  where (after).generation <> (before).generation
  order by (after).circuit_id
)
select (after).circuit_id, (after).name, (after).generation <> (before).generation as is_changed
from judged
