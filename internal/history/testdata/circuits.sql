-- More of the record without a fault: one circuit that opens, is probed, opens for twice as long, recovers in two waves and is
-- held in the end. Times are seconds after the rest of the record.

insert into lane (namespace_id, handler, priority, circuit) values (1, 'work', 1, 'svc');
insert into circuit (namespace_id, name, state, generation, entered, wave, hold_from)
values (1, 'svc', 'half_open', 12, 12, 0, null);
update lane set circuit_id = circuit.circuit_id from circuit where lane.circuit = 'svc';

insert into task (task_id, namespace_id, name, context, step_count, created_at) values (9 << 14, 1, 'behind', '{}', 8, at(100));
insert into step (task_id, step_no, lane_id, retry_limit, retryable, max_lost_leases, name, children)
select 9 << 14, n, (select lane_id from lane where circuit = 'svc'), 9, true, 3, 'b' || n, '{2147483647}' from generate_series(1, 8) as n;
select task_ev(100, 'submitted', 9 << 14, steps => 8);

-- One event of the circuit.
create function cev(at float8, generation int, from_state text, to_state text, cause text, open_until float8 default null, wave int default null)
returns void language sql
as $$
  insert into circuit_event (circuit_id, namespace_id, generation, recorded_at, from_state, to_state, cause, open_until, wave, policy)
  select circuit_id, 1, cev.generation, at(cev.at), cev.from_state::circuit_state, cev.to_state::circuit_state, cev.cause::circuit_cause,
    at(cev.open_until), cev.wave, circuit_policy_in_force(row(null, 1, null, null, null, null, interval '10 s', null, 2, 1, 1, null, null, null)::circuit_policy, null)
  from circuit
$$;
update circuit set policy = row(null, 1, null, null, null, null, interval '10 s', null, 2, 1, 1, null, null, null)::circuit_policy;

-- A dispatch of step n, and its success.
create function ran(n int, from_at float8, to_at float8) returns void language sql
as $$
  select ev(from_at, 'dispatched', (9 << 14) + n, 1, session => 2);
  select ev(to_at, 'concluded', (9 << 14) + n, 2, session => 2, outcome => 'success', attempts => 1, failures => 0, lost => 0);
  insert into step_end (task_id, step_no, state, ended_at, token, session_id, attempts, failures, dispatches, epoch, event_no, lost_leases)
  values (9 << 14, n, 'complete', at(to_at), gen_random_uuid(), 2, 1, 0, 1, 1, 2, 0);
$$;

select cev(101, 2, 'closed', 'closed', 'policy');
-- Step 1 fails: it opens. Step 2 was under way.
select ev(102, 'dispatched', (9 << 14) + 1, 1, session => 1);
select ran(2, 102, 105);
select cev(103, 3, 'closed', 'open', 'failure_rate', 113);
select ev(103, 'concluded', (9 << 14) + 1, 2, session => 1, outcome => 'retryable_failure', attempts => 1, failures => 1, lost => 0,
  state => 'backoff', source => 'retry_after', base => 1, jitter => 0, next => 104);
select fl(103, (9 << 14) + 1, 1, 'retryable_failure', 1, 1, 0, 2, 1, source => 'retry_after', base => 1, jitter => 0, next => 104);
-- Probes: step 3 is handed back, step 1 fails.
select cev(113.5, 4, 'open', 'half_open', 'open_elapsed');
select ev(114, 'dispatched', (9 << 14) + 3, 1, session => 1);
select ev(114, 'dispatched', (9 << 14) + 1, 3, dispatch => 2, session => 1);
select ev(115, 'concluded', (9 << 14) + 3, 2, session => 1, outcome => 'released', attempts => 0, failures => 0, lost => 0, state => 'ready');
select cev(116, 5, 'half_open', 'open', 'probe_failed', 136);
select ev(116, 'concluded', (9 << 14) + 1, 4, dispatch => 2, session => 1, outcome => 'retryable_failure', attempts => 2, failures => 2, lost => 0,
  state => 'backoff', source => 'retry_after', base => 1, jitter => 0, next => 117);
select fl(116, (9 << 14) + 1, 2, 'retryable_failure', 2, 2, 0, 4, 1, source => 'retry_after', base => 1, jitter => 0, next => 117);
-- It recovers.
select cev(136, 6, 'open', 'half_open', 'open_elapsed');
select ran(4, 137, 138);
select cev(138, 7, 'half_open', 'recovering', 'probes_passed', null, 1);
select ran(5, 139, 140);
select cev(140, 8, 'recovering', 'recovering', 'wave_passed', null, 2);
select ran(6, 141, 142);
select cev(142, 9, 'recovering', 'closed', 'recovered');
-- It is held, and released: step 7 probes.
select cev(150, 10, 'closed', 'held', 'hold');
select cev(160, 11, 'held', 'half_open', 'release');
select cev(161, 12, 'half_open', 'half_open', 'policy');
select ev(162, 'dispatched', (9 << 14) + 7, 1, session => 1);
insert into lease (task_id, step_no, lane_id, session_id, token, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered,
  released, skipped, started, seq, runnable_at, granted_at, until, lease_duration, circuit_id, circuit_generation, probe)
select 9 << 14, 7, lane_id, 1, gen_random_uuid(), 0, 0, 1, 1, 1, 0, 0, 0, 0, false, 7, at(100), at(162), at(192), interval '30 s', circuit_id,
  12, true
from lane where circuit = 'svc';
insert into ready (lane_id, seq, task_id, step_no, dispatches, event_no, released, runnable_at)
select lane_id, 3, 9 << 14, 3, 1, 2, 1, at(115) from lane where circuit = 'svc';
insert into ready (lane_id, seq, task_id, step_no, runnable_at) select lane_id, 8, 9 << 14, 8, at(100) from lane where circuit = 'svc';
insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
  skipped, started)
select lane_id, at(117), 9 << 14, 1, 2, 2, 2, 1, 4, 0, 0, 0, 0, true from lane where circuit = 'svc';
