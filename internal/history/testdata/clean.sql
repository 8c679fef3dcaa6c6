-- A record without a fault, written by hand: seven tasks of one namespace, two workers' sessions. Times are seconds.

create function at(seconds float8) returns timestamptz language sql immutable
as $$ select timestamptz '2026-03-01 00:00:00+00' + make_interval(secs => seconds) $$;

-- One event of one step.
create function ev(at float8, kind text, step bigint, event_no int, dispatch int default 1, session int default null, epoch int default 1,
  outcome text default null, attempts int default null, failures int default null, lost int default null, state text default null,
  source text default null, base float8 default null, jitter float8 default null, next float8 default null, code text default null)
returns void language sql
as $$
  insert into history (recorded_at, namespace_id, kind, outcome, task_ids, step_nos, event_nos, dispatches, epochs, session_ids, attempts,
    failures, lost_leases, states, delay_sources, base_delays, jitters, next_retry_ats, error_codes)
  values (at(ev.at), 1, ev.kind::history_kind, ev.outcome::dispatch_outcome, array[step & ~16383::bigint], array[(step & 16383)::int],
    array[ev.event_no], array[ev.dispatch], array[ev.epoch], array[ev.session], array[ev.attempts], array[ev.failures],
    array[ev.lost::smallint], array[ev.state], array[ev.source], array[make_interval(secs => ev.base)], array[make_interval(secs => ev.jitter)],
    array[at(ev.next)], array[ev.code])
$$;

-- One event of a whole task.
create function task_ev(at float8, kind text, task bigint, state text default null, steps int default null) returns void language sql
as $$
  insert into history (recorded_at, namespace_id, kind, task_ids, attempts, states)
  values (at(task_ev.at), 1, task_ev.kind::history_kind, array[task], array[steps], array[task_ev.state])
$$;

-- A stored failure. d: as the history's event of it has them.
create function fl(at float8, step bigint, dispatch int, outcome text, attempt int, failures int, lost int, event_no int, session int,
  epoch int default 1, source text default null, base float8 default null, jitter float8 default null, next float8 default null,
  code text default null) returns void language sql
as $$
  insert into step_failure (task_id, step_no, dispatch, outcome, counted, attempt, failures, lost_leases, epoch, event_no, session_id,
    token, ended_at, base_delay, jitter, next_retry_at, delay_source, error_code)
  values (step & ~16383::bigint, (step & 16383)::int, fl.dispatch, fl.outcome::dispatch_outcome, true, fl.attempt, fl.failures, fl.lost,
    fl.epoch, fl.event_no, fl.session, gen_random_uuid(), at(fl.at), make_interval(secs => fl.base), make_interval(secs => fl.jitter),
    at(fl.next), fl.source::delay_source, fl.code)
$$;

insert into namespace (name) values ('default');
insert into lane (namespace_id, handler, priority) values (1, 'work', 1);
insert into worker_session (namespace_id, worker_id, instance_id, replica_id, max_in_flight, handlers)
values (1, 'w1', 'i', gen_random_uuid(), 2, '{work}'), (1, 'w2', 'i', gen_random_uuid(), 1, '{work}');

insert into task (task_id, namespace_id, name, context, step_count, not_before, created_at) values
  (1 << 14, 1, 'diamond', '{}', 4, null, at(0)),
  (2 << 14, 1, 'permanent', '{}', 2, null, at(0)),
  (3 << 14, 1, 'exhausted', '{}', 1, null, at(0)),
  (4 << 14, 1, 'cancelled', '{}', 3, null, at(0)),
  (5 << 14, 1, 'deferred', '{}', 1, at(3600), at(0)),
  (6 << 14, 1, 'by hand', '{}', 3, null, at(0)),
  (7 << 14, 1, 'poison', '{}', 2, null, at(0));

insert into step (task_id, step_no, lane_id, retry_limit, retryable, max_lost_leases, name, parents, children, join_children, join_stripe, join_need)
values
  (1 << 14, 1, 1, 3, true, 3, 'a', null, '{2,3}', null, null, null),
  (1 << 14, 2, 1, 3, true, 3, 'b', '{1}', null, '{4}', '{-1}', '{2}'),
  (1 << 14, 3, 1, 3, true, 3, 'c', '{1}', null, '{4}', '{-1}', '{2}'),
  (1 << 14, 4, 1, 3, true, 3, 'd', '{2,3}', '{2147483647}', null, null, null),
  (2 << 14, 1, 1, 3, true, 3, 'a', null, '{2}', null, null, null),
  (2 << 14, 2, 1, 3, true, 3, 'b', '{1}', '{2147483647}', null, null, null),
  (3 << 14, 1, 1, 2, true, 3, 'a', null, '{2147483647}', null, null, null),
  (4 << 14, 1, 1, 3, true, 3, 'a', null, '{3}', null, null, null),
  (4 << 14, 2, 1, 3, true, 3, 'b', null, '{2147483647}', null, null, null),
  (4 << 14, 3, 1, 3, true, 3, 'c', '{1}', '{2147483647}', null, null, null),
  (5 << 14, 1, 1, 3, true, 3, 'a', null, '{2147483647}', null, null, null),
  (6 << 14, 1, 1, 3, false, 3, 'a', null, '{3}', null, null, null),
  (6 << 14, 2, 1, 3, true, 3, 'b', null, '{2147483647}', null, null, null),
  (6 << 14, 3, 1, 3, true, 3, 'c', '{1}', '{2147483647}', null, null, null),
  (7 << 14, 1, 1, 3, true, 1, 'a', null, '{2147483647}', null, null, null),
  (7 << 14, 2, 1, 3, true, 3, 'b', null, '{2147483647}', null, null, null);
update step set backoff_initial = interval '500 ms', backoff_multiplier = 3, backoff_max = interval '4 s', backoff_jitter = 0,
  max_retry_after = interval '1 minute', non_retryable_codes = '{CARD_DECLINED}'
where task_id = 7 << 14 and step_no = 2;

select task_ev(0, 'submitted', n << 14, steps => (array[4, 2, 1, 3, 1, 3, 2])[n]) from generate_series(1, 7) as n;

-- Task 1 completes. Its step 2 fails twice on the way, once by timeout; 2 and 3 are granted in one record.
select ev(1, 'dispatched', (1 << 14) + 1, 1, session => 1);
select ev(2, 'concluded', (1 << 14) + 1, 2, session => 1, outcome => 'success', attempts => 1, failures => 0, lost => 0);
insert into history (recorded_at, namespace_id, kind, task_ids, step_nos, event_nos, dispatches, epochs, session_ids)
values (at(3), 1, 'dispatched', array[1 << 14, 1 << 14], '{2,3}', '{1,1}', '{1,1}', '{1,1}', '{1,1}');
insert into history (recorded_at, namespace_id, kind, task_ids, step_nos, event_nos, dispatches, epochs, session_ids)
values (at(4), 1, 'confirmed', array[1 << 14, 1 << 14], '{2,3}', '{2,2}', '{1,1}', '{1,1}', '{1,1}');
select ev(5, 'concluded', (1 << 14) + 2, 3, session => 1, outcome => 'retryable_failure', attempts => 1, failures => 1, lost => 0,
  state => 'backoff', source => 'backoff', base => 2, jitter => 0.15, next => 7.15, code => 'BUSY');
select ev(6, 'concluded', (1 << 14) + 3, 3, session => 1, outcome => 'success', attempts => 1, failures => 0, lost => 0);
select ev(7.15, 'dispatched', (1 << 14) + 2, 4, dispatch => 2, session => 2);
select ev(8, 'confirmed', (1 << 14) + 2, 5, dispatch => 2, session => 2);
select ev(9, 'concluded', (1 << 14) + 2, 6, dispatch => 2, session => 2, outcome => 'timed_out', attempts => 2, failures => 2, lost => 0,
  state => 'backoff', source => 'backoff', base => 4, jitter => 0.4, next => 13.4, code => 'TIMED_OUT');
select ev(10, 'late', (1 << 14) + 2, 0, dispatch => 2, session => 2, outcome => 'success');
select ev(14, 'dispatched', (1 << 14) + 2, 7, dispatch => 3, session => 2);
select ev(15, 'concluded', (1 << 14) + 2, 8, dispatch => 3, session => 2, outcome => 'success', attempts => 3, failures => 2, lost => 0);
select ev(15, 'dispatched', (1 << 14) + 4, 1, session => 1);
select ev(16, 'concluded', (1 << 14) + 4, 2, session => 1, outcome => 'success', attempts => 1, failures => 0, lost => 0);
select task_ev(16, 'task_ended', 1 << 14, 'complete');
select fl(5, (1 << 14) + 2, 1, 'retryable_failure', 1, 1, 0, 3, 1, source => 'backoff', base => 2, jitter => 0.15, next => 7.15, code => 'BUSY');
select fl(9, (1 << 14) + 2, 2, 'timed_out', 2, 2, 0, 6, 2, source => 'backoff', base => 4, jitter => 0.4, next => 13.4, code => 'TIMED_OUT');
insert into late_report (task_id, step_no, dispatch, outcome, digest, recorded_at) values (1 << 14, 2, 2, 'success', '', at(10));
insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, ended_at) values
  (1 << 14, 1, 'complete', 1, 0, 1, 0, 1, 2, 1, gen_random_uuid(), at(2)),
  (1 << 14, 2, 'complete', 3, 2, 3, 0, 1, 8, 2, gen_random_uuid(), at(15)),
  (1 << 14, 3, 'complete', 1, 0, 1, 0, 1, 3, 1, gen_random_uuid(), at(6)),
  (1 << 14, 4, 'complete', 1, 0, 1, 0, 1, 2, 1, gen_random_uuid(), at(16));
insert into task_end values (1 << 14, 'complete', at(16));

-- Task 2 fails for good; its step 2 stays blocked.
select ev(1, 'dispatched', (2 << 14) + 1, 1, session => 1);
select ev(2, 'concluded', (2 << 14) + 1, 2, session => 1, outcome => 'permanent_failure', attempts => 1, failures => 1, lost => 0,
  state => 'parked', code => 'BAD');
select task_ev(2, 'task_ended', 2 << 14, 'error');
select fl(2, (2 << 14) + 1, 1, 'permanent_failure', 1, 1, 0, 2, 1, code => 'BAD');
insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch, event_no, lost_leases,
  undelivered, released, skipped, started)
values (2 << 14, 1, 1, 'permanent', 'BAD', at(2), 1, 1, 1, 1, 2, 0, 0, 0, 0, true);
insert into task_end values (2 << 14, 'error', at(2));

-- Task 3 is exhausted after two attempts, reset, loses a lease, and its late report is accepted.
select ev(20, 'dispatched', (3 << 14) + 1, 1, session => 1);
select ev(21, 'concluded', (3 << 14) + 1, 2, session => 1, outcome => 'retryable_failure', attempts => 1, failures => 1, lost => 0,
  state => 'backoff', source => 'retry_after', base => 1, jitter => 0, next => 22);
select ev(22, 'dispatched', (3 << 14) + 1, 3, dispatch => 2, session => 1);
select ev(23, 'concluded', (3 << 14) + 1, 4, dispatch => 2, session => 1, outcome => 'retryable_failure', attempts => 2, failures => 2, lost => 0,
  state => 'parked');
select task_ev(23, 'task_ended', 3 << 14, 'error');
select ev(24, 'retried', (3 << 14) + 1, 5, dispatch => 2, epoch => 2, attempts => 0, failures => 0, lost => 0, state => 'ready');
select task_ev(24, 'task_reopened', 3 << 14, 'in_progress');
select ev(25, 'dispatched', (3 << 14) + 1, 6, dispatch => 3, epoch => 2, session => 2);
select ev(26, 'confirmed', (3 << 14) + 1, 7, dispatch => 3, epoch => 2, session => 2);
select ev(27, 'concluded', (3 << 14) + 1, 8, dispatch => 3, epoch => 2, session => 2, outcome => 'lost_lease', attempts => 0, failures => 0,
  lost => 1, state => 'ready');
select ev(28, 'concluded', (3 << 14) + 1, 9, dispatch => 3, epoch => 2, session => 2, outcome => 'success', attempts => 1, failures => 0, lost => 0);
select task_ev(28, 'task_ended', 3 << 14, 'complete');
select fl(21, (3 << 14) + 1, 1, 'retryable_failure', 1, 1, 0, 2, 1, source => 'retry_after', base => 1, jitter => 0, next => 22);
select fl(23, (3 << 14) + 1, 2, 'retryable_failure', 2, 2, 0, 4, 1);
insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, ended_at)
values (3 << 14, 1, 'complete', 1, 0, 3, 0, 2, 9, 2, gen_random_uuid(), at(28));
insert into task_end values (3 << 14, 'complete', at(28));

-- Task 4 is cancelled: one step runs, one is ready after an undelivered dispatch, one is blocked.
select ev(30, 'dispatched', (4 << 14) + 1, 1, session => 1);
select ev(31, 'confirmed', (4 << 14) + 1, 2, session => 1);
select ev(30, 'dispatched', (4 << 14) + 2, 1, session => 2);
select ev(35, 'concluded', (4 << 14) + 2, 2, session => 2, outcome => 'undelivered', attempts => 0, failures => 0, lost => 0, state => 'ready');
insert into history (recorded_at, namespace_id, kind, actor, task_ids, step_nos, event_nos, dispatches, epochs, session_ids, attempts, failures,
  lost_leases, states)
values (at(36), 1, 'cancelled', 'alice', array[4 << 14, 4 << 14, 4 << 14], '{1,2,3}', '{3,3,1}', '{1,1,0}', '{1,1,1}', '{1,null,null}', '{0,0,0}',
  '{0,0,0}', '{0,0,0}', '{cancelled,cancelled,cancelled}');
select task_ev(36, 'task_ended', 4 << 14, 'cancelled');
insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, ended_at) values
  (4 << 14, 1, 'cancelled', 0, 0, 1, 0, 1, 3, 1, at(36)),
  (4 << 14, 2, 'cancelled', 0, 0, 1, 0, 1, 3, null, at(36)),
  (4 << 14, 3, 'cancelled', 0, 0, 0, 0, 1, 1, null, at(36));
insert into task_end values (4 << 14, 'cancelled', at(36));

-- Task 5 has not begun.
insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
  skipped, started)
values (1, at(3600), 5 << 14, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, false);

-- Task 6: a step that may not be retried fails and is resolved by hand, which wakes its child; the other's last failure did not count.
select ev(40, 'dispatched', (6 << 14) + 1, 1, session => 1);
select ev(41, 'concluded', (6 << 14) + 1, 2, session => 1, outcome => 'retryable_failure', attempts => 1, failures => 1, lost => 0, state => 'parked');
select ev(42, 'resolved', (6 << 14) + 1, 3, attempts => 1, failures => 1, lost => 0, state => 'resolved_manually');
select ev(40, 'dispatched', (6 << 14) + 2, 1, session => 2);
select ev(43, 'concluded', (6 << 14) + 2, 2, session => 2, outcome => 'retryable_failure', attempts => 0, failures => 1, lost => 0,
  state => 'backoff', source => 'header_seconds', base => 86400, jitter => 0, next => 86443);
select fl(41, (6 << 14) + 1, 1, 'retryable_failure', 1, 1, 0, 2, 1);
select fl(43, (6 << 14) + 2, 1, 'retryable_failure', 0, 1, 0, 2, 2, source => 'header_seconds', base => 86400, jitter => 0, next => 86443);
insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, ended_at)
values (6 << 14, 1, 'resolved_manually', 1, 1, 1, 0, 1, 3, at(42));
insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered, released,
  skipped, started)
values (1, at(86443), 6 << 14, 2, 0, 1, 1, 1, 2, 0, 0, 0, 1, true);
insert into ready (lane_id, task_id, step_no, runnable_at) values (1, 6 << 14, 3, at(42));

-- Task 7: one step lost the one lease it may lose; the other runs, confirmed, after two failures under a policy of its own.
select ev(50, 'dispatched', (7 << 14) + 1, 1, session => 2);
select ev(51, 'confirmed', (7 << 14) + 1, 2, session => 2);
select ev(81, 'concluded', (7 << 14) + 1, 3, session => 2, outcome => 'lost_lease', attempts => 0, failures => 0, lost => 1, state => 'parked');
select ev(50, 'dispatched', (7 << 14) + 2, 1, session => 1);
select ev(52, 'concluded', (7 << 14) + 2, 2, session => 1, outcome => 'retryable_failure', attempts => 1, failures => 1, lost => 0,
  state => 'backoff', source => 'header_unreadable', base => 0.5, jitter => 0, next => 52.5, code => 'BUSY');
select ev(53, 'dispatched', (7 << 14) + 2, 3, dispatch => 2, session => 1);
select ev(54, 'concluded', (7 << 14) + 2, 4, dispatch => 2, session => 1, outcome => 'retryable_failure', attempts => 2, failures => 2, lost => 0,
  state => 'backoff', source => 'backoff', base => 1.5, jitter => 0, next => 55.5, code => 'BUSY');
select ev(56, 'dispatched', (7 << 14) + 2, 5, dispatch => 3, session => 1);
select ev(57, 'confirmed', (7 << 14) + 2, 6, dispatch => 3, session => 1);
select fl(81, (7 << 14) + 1, 1, 'lost_lease', 0, 0, 1, 3, 2, code => 'LEASE_EXPIRED');
select fl(52, (7 << 14) + 2, 1, 'retryable_failure', 1, 1, 0, 2, 1, source => 'header_unreadable', base => 0.5, jitter => 0, next => 52.5, code => 'BUSY');
select fl(54, (7 << 14) + 2, 2, 'retryable_failure', 2, 2, 0, 4, 1, source => 'backoff', base => 1.5, jitter => 0, next => 55.5, code => 'BUSY');
insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch, event_no, lost_leases,
  undelivered, released, skipped, started)
values (7 << 14, 1, 1, 'lease_expired', 'LEASE_EXPIRED', at(81), 0, 0, 1, 1, 3, 1, 0, 0, 0, true);
insert into lease (task_id, step_no, lane_id, session_id, token, attempts, failures, dispatches, epoch, event_no, lost_leases, undelivered,
  released, skipped, started, runnable_at, granted_at, confirmed_at, until, lease_duration)
values (7 << 14, 2, 1, 1, gen_random_uuid(), 2, 2, 3, 1, 6, 0, 0, 0, 0, true, at(55.5), at(56), at(57), at(87), interval '30 s');

-- A task that was submitted, ran and was purged leaves its history only.
select task_ev(60, 'submitted', 8 << 14, steps => 1);
select ev(61, 'dispatched', (8 << 14) + 1, 1, session => 1);
select ev(62, 'concluded', (8 << 14) + 1, 2, session => 1, outcome => 'success', attempts => 1, failures => 0, lost => 0);
select task_ev(62, 'task_ended', 8 << 14, 'complete');
select task_ev(63, 'purged', 8 << 14);

insert into submit_key (namespace_id, key, digest, task_id) select 1, 'order-' || n, '', n << 14 from generate_series(1, 6) as n;
