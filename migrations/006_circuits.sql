-- Shared circuits: a named dependency that many steps call, seen once by everyone, because it is a row.
--
-- A step without a circuit pays nothing: its lane and lease carry no circuit_id, and no hot statement reads a circuit for it.
-- Steps are kept back by the gate, never touched: opening a circuit over a million of them is one row written.
--
-- Who may act on a circuit is decided by its row's lock, taken before any live row's (the lock order of 002_tables.sql, where
-- circuits stand between worker_session and the live rows, by circuit_id):
--
--   a claim shares it while the circuit is plain: closed, without limits, no hold planned
--   whoever reports, probes, counts or changes it has it alone
--
-- So from the COMMIT that opens a circuit on, no claim of any server grants a step of it. Slots are not counted but looked
-- up: a probe's slot, or a place among max_in_flight, is the lease row itself, so none can leak.

create type circuit_state as enum ('closed', 'open', 'half_open', 'recovering', 'held');
create type circuit_cause as enum ('failure_rate', 'slow_rate', 'reach', 'open_elapsed', 'probe_failed', 'probes_passed',
  'wave_passed', 'wave_failed', 'recovered', 'hold', 'hold_ended', 'release', 'policy', 'workers_barred');
create type failure_blame as enum ('dependency', 'worker', 'step');

create type circuit_policy as (
  window_duration        interval,
  min_observations       int,
  failure_rate_threshold float8,
  slow_call_duration     interval,
  slow_rate_threshold    float8,
  min_failing_workers    int,
  open_duration          interval,
  max_open_duration      interval,
  max_probes             int,
  close_after_successes  int,
  recovery_wave          int,
  max_in_flight          int,
  rate                   float8,
  suspend_budgets        boolean
);
comment on type circuit_policy is 'When a circuit opens, how it closes, what it lets through. NULL: not set; circuit_policy_in_force() says what then holds.';

-- Ten buckets, the newest first. A window whose width is not the policy's, or whose buckets are all too old, counts as empty.
create type circuit_window as (
  width    interval,
  bucket   bigint,                             -- number of the newest bucket: seconds since 1970 / (width / 10)
  observed int[],
  failed   int[],
  slow     int[]                               -- of a worker: runs that it is to blame for, lost leases included
);

-- What one batch of reports says of a circuit.
create type circuit_tally as (
  observed      int,
  failed        int,
  slow          int,
  probes_passed int,
  probes_failed int,
  wave_passed   int,
  wave_failed   int,
  reach_until   timestamptz                    -- NULL: no failure reaches beyond its step
);

create table circuit (
  circuit_id    int generated always as identity primary key,
  namespace_id  int not null,
  name          text not null,
  state         circuit_state not null default 'closed',
  generation    bigint not null default 1,     -- rises with every event
  entered       bigint not null default 1,     -- the generation at which it came to its state
  since         timestamptz not null default now(),
  cause         circuit_cause,                 -- NULL: it never left closed
  open_until    timestamptz,                   -- while open
  open_for      interval,                      -- how long it was last opened for; NULL since it closed
  hold_from     timestamptz,                   -- NULL: no hold, in force or planned
  hold_until    timestamptz,                   -- NULL: until released
  hold_reason   text,
  hold_actor    text,
  probes_passed int not null default 0,        -- while half_open
  wave          int not null default 0,        -- while recovering: the size of the wave under way,
  wave_no       smallint not null default 0,   --   its number, from 1,
  wave_passed   int not null default 0,        --   and how many of it have succeeded
  rate_at       timestamptz,                   -- when all that was started would have been started at an even pace
  calls         circuit_window,                -- NULL: none since it closed
  policy        circuit_policy,                -- what is set on it; NULL: nothing
  created_at    timestamptz not null default now(),
  unique (namespace_id, name)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
comment on table circuit is 'Shared circuits, made on their first use. One row is updated once a batch of reports.';

alter table namespace add circuit_defaults circuit_policy;
comment on column namespace.circuit_defaults is 'The policy of circuits that set none of their own. NULL: nothing set.';

create table circuit_worker (
  circuit_id   int not null,
  worker_id    text not null,
  calls        circuit_window,                 -- its own concluded runs
  barred_until timestamptz,                    -- it gets no steps of the circuit before
  primary key (circuit_id, worker_id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
comment on table circuit_worker is 'What each worker saw of a circuit within the window: the quorum, and who is barred. Written under the circuit''s lock.';

create table circuit_event (
  event_id     bigint generated always as identity primary key,
  circuit_id   int not null,
  namespace_id int not null,
  generation   bigint not null,                -- after it; one event a generation
  recorded_at  timestamptz not null,           -- clock_timestamp(), read under the circuit's lock
  xid          xid8 not null default pg_current_xact_id(), -- orders events as watchers can see them: see circuit_events_since.sql
  from_state   circuit_state not null,
  to_state     circuit_state not null,
  cause        circuit_cause not null,
  open_until   timestamptz,
  wave         int,
  task_id      bigint,                         -- the attempt that brought it about; NULL: none did
  step_no      int,
  dispatch     int,
  worker_ids   text[],                         -- those that had seen it fail; of workers_barred: those that were barred
  actor        text,                           -- of an operator's act
  reason       text,
  hold_from    timestamptz,
  hold_until   timestamptz,
  observed     int,                            -- in the window when it was judged
  failed       int,
  slow         int,
  policy       circuit_policy not null         -- in force
);
comment on table circuit_event is 'Append-only: every transition of a circuit and every operator''s act on it.';
create unique index circuit_event_generation on circuit_event (circuit_id, generation);
create index circuit_event_xid on circuit_event (namespace_id, xid);

alter table lane add circuit_id int;           -- NULL: none
create index lane_circuit on lane (circuit_id) where circuit_id is not null;

alter table lease
  add circuit_id         int,                  -- NULL: none; the three cost no byte then
  add circuit_generation bigint,               -- of the circuit, when it was granted
  add probe              boolean;              -- granted while half_open
create index lease_circuit on lease (circuit_id) where circuit_id is not null;

-- Steps that named a circuit before there were any.
insert into circuit (namespace_id, name) select distinct namespace_id, circuit from lane where circuit <> '';
update lane set circuit_id = circuit.circuit_id
from circuit where circuit.namespace_id = lane.namespace_id and circuit.name = lane.circuit;

alter type step_readiness add attribute waiting_for text, add attribute waiting_until timestamptz;
comment on column step_readiness.ready_for_execution is 'Would be granted to the next worker with room: retry_eligible, dependencies satisfied, no live lease, not deferred, and its circuit lets it.';
comment on column step_readiness.waiting_for is 'Why it is not running: dependencies, backoff, not_before, circuit (open, probing or recovering), limit (of its circuit), paused (its circuit is held), worker (nobody subscribes to its handler), capacity (all who do are busy, or it is about to go) or operator (failed for good). NULL: it runs or has ended.';
comment on column step_readiness.waiting_until is 'When what it waits for ends by itself, at the earliest. NULL: not known.';
comment on column task_execution.waiting_for_retry_steps is 'Failed and not due yet, or kept back by their circuit.';

alter table circuit owner to tasker_owner;
alter table circuit_worker owner to tasker_owner;
alter table circuit_event owner to tasker_owner;
grant select, insert, update, delete on circuit, circuit_worker, circuit_event to tasker_runtime;

---- create above / drop below ----

alter type step_readiness drop attribute waiting_until, drop attribute waiting_for;
drop index lease_circuit, lane_circuit;
alter table lease drop circuit_id, drop circuit_generation, drop probe;
alter table lane drop circuit_id;
drop table circuit_event, circuit_worker, circuit cascade;
alter table namespace drop circuit_defaults;
drop type circuit_tally, circuit_window, circuit_policy, failure_blame, circuit_cause, circuit_state cascade;
