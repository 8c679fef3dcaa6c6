-- Circuits and their record, for people and dashboards.

-- What a view calls runs with its caller's rights, so whatever reads a table is written out here.
create or replace view circuit_health as
select
  namespace.name as namespace,
  now_is.name as circuit,
  now_is.state::text as state,
  now_is.since,
  now_is.generation,
  now_is.cause::text as cause,
  now_is.open_until,
  now_is.hold_reason,
  now_is.hold_from as held_from,
  now_is.hold_until as held_until,
  sum_of(calls.observed) as observed,
  sum_of(calls.failed) as failed,
  sum_of(calls.slow) as slow,
  round(sum_of(calls.failed)::numeric / nullif(sum_of(calls.observed), 0), 4) as failure_rate,
  running.steps as in_flight,
  waiting.steps as waiting_steps,
  barred.worker_ids as barred_workers,
  now_is.wave,
  now_is.wave_passed,
  now_is.probes_passed
from circuit
join namespace on namespace.namespace_id = circuit.namespace_id
cross join lateral circuit_policy_in_force(circuit.policy, namespace.circuit_defaults) as policy
-- what time has made of it, whether or not anybody has looked since
cross join lateral circuit_at(circuit, now()) as first_turn
cross join lateral circuit_at(first_turn, now()) as now_is
cross join lateral circuit_window_at(now_is.calls, policy.window_duration, now()) as calls
cross join lateral (
  select count(*)::int as steps from lease where lease.circuit_id = circuit.circuit_id
) as running
cross join lateral (
  select count(*)::int as steps
  from (
    select
    from lane
    cross join lateral (
      (select from ready where ready.lane_id = lane.lane_id limit 10000)
      union all
      (select from backoff where backoff.lane_id = lane.lane_id and backoff.due_at <= now() limit 10000)
    ) as standing
    where lane.circuit_id = circuit.circuit_id
      and not exists (
        select from pause
        where pause.namespace_id = lane.namespace_id and pause.handler in ('', lane.handler) and pause.ended_at is null
          and (pause.until is null or pause.until > now()))
    limit 10000
  ) as counted
) as waiting
cross join lateral (
  select array_agg(worker_id order by worker_id) as worker_ids
  from circuit_worker
  where circuit_worker.circuit_id = circuit.circuit_id and barred_until > now()
) as barred;
comment on view circuit_health is 'Every shared circuit as it stands. One SELECT shows all services.';
comment on column circuit_health.namespace is 'Where it lives.';
comment on column circuit_health.circuit is 'Its name: the dependency that steps name.';
comment on column circuit_health.state is 'closed, open, half_open (its time is up: probes go out), recovering (in doubling waves) or held.';
comment on column circuit_health.since is 'When it came to this state.';
comment on column circuit_health.generation is 'Rises by one with every event of it.';
comment on column circuit_health.cause is 'Why it last changed, as circuit_events_v says it. NULL: it never did.';
comment on column circuit_health.open_until is 'While open: when probing begins.';
comment on column circuit_health.hold_reason is 'Of a hold in force or planned. NULL: none.';
comment on column circuit_health.held_from is 'When the hold began or begins. NULL: none.';
comment on column circuit_health.held_until is 'When it ends by itself. NULL: when it is released.';
comment on column circuit_health.observed is 'Calls within the policy''s window that count: successes, permanent failures, and failures blamed on the dependency.';
comment on column circuit_health.failed is 'Of them, retryable failures and run timeouts blamed on the dependency.';
comment on column circuit_health.slow is 'Of them, those that lasted slow_call_duration. 0 where the policy names none.';
comment on column circuit_health.failure_rate is 'failed of observed, 0 to 1. NULL: none observed.';
comment on column circuit_health.in_flight is 'Its steps under a lease now, over all servers.';
comment on column circuit_health.waiting_steps is 'Steps that could run now, and wait for it or for a worker; counted up to 10,000.';
comment on column circuit_health.barred_workers is 'Workers that get no steps of it for a while, since they fail where others do not. NULL: none.';
comment on column circuit_health.wave is 'While recovering: the size of the wave under way, else 0.';
comment on column circuit_health.wave_passed is 'While recovering: how many of the wave have succeeded.';
comment on column circuit_health.probes_passed is 'While half_open: how many probes have succeeded.';

create or replace view circuit_events_v as
select
  event.event_id,
  namespace.name as namespace,
  circuit.name as circuit,
  event.recorded_at as at,
  event.generation,
  event.from_state::text as from_state,
  event.to_state::text as to_state,
  event.cause::text as cause,
  event.open_until,
  event.wave,
  event.task_id,
  event.step_no,
  event.dispatch,
  event.worker_ids as workers,
  event.actor,
  event.reason,
  event.hold_from as held_from,
  event.hold_until as held_until,
  event.observed,
  event.failed,
  event.slow,
  event.policy
from circuit_event as event
join circuit on circuit.circuit_id = event.circuit_id
join namespace on namespace.namespace_id = event.namespace_id;
comment on view circuit_events_v is 'The record of shared circuits: every transition and every operator''s act. Order by event_id.';
comment on column circuit_events_v.event_id is 'Rises; events of one circuit stand in its order.';
comment on column circuit_events_v.namespace is 'Where the circuit lives.';
comment on column circuit_events_v.circuit is 'The circuit.';
comment on column circuit_events_v.at is 'When, read under the circuit''s lock.';
comment on column circuit_events_v.generation is 'The circuit''s generation after it.';
comment on column circuit_events_v.from_state is 'The state before.';
comment on column circuit_events_v.to_state is 'The state after; the same where only the wave, the policy or who is barred changed.';
comment on column circuit_events_v.cause is 'failure_rate, slow_rate, reach, open_elapsed, probe_failed, probes_passed, wave_passed, wave_failed, recovered, hold, hold_ended, release, policy or workers_barred.';
comment on column circuit_events_v.open_until is 'Where it opened: until when.';
comment on column circuit_events_v.wave is 'Where a wave begins: its size.';
comment on column circuit_events_v.task_id is 'The task of the attempt that brought it about. NULL: none did.';
comment on column circuit_events_v.step_no is 'That attempt''s step, by number.';
comment on column circuit_events_v.dispatch is 'And its dispatch: with step_attempts_v it tells the failure.';
comment on column circuit_events_v.workers is 'Workers that had seen it fail; of workers_barred: those that were barred.';
comment on column circuit_events_v.actor is 'Who acted, of an operator''s act.';
comment on column circuit_events_v.reason is 'And why.';
comment on column circuit_events_v.held_from is 'Of a hold: when it begins.';
comment on column circuit_events_v.held_until is 'Of a hold: when it ends by itself.';
comment on column circuit_events_v.observed is 'Calls in the window when it was judged.';
comment on column circuit_events_v.failed is 'Of them, failed.';
comment on column circuit_events_v.slow is 'Of them, slow.';
comment on column circuit_events_v.policy is 'The policy in force then; (policy).open_duration and so on.';
