-- A step's state is the table its row stands in.
--
--   blocked steps        no live row at all: a `step` whose parents have not all ended well
--   ready                may run now                     ─┐
--   backoff              waits for due_at                 │ the live row is the step's mutex: every unfinished,
--   lease                runs now                         │ unblocked step stands in exactly one of these four
--   parked               failed for good                 ─┘
--   step_end             complete, resolved_manually or cancelled: its key makes recording exactly-once
--
-- Big tables are insert-only and partitioned by task_id; only the small live tables churn. A verb moves a live row by
-- deleting it here and inserting it there in one transaction, after locking it. Lock and delete may share a statement:
-- ready and backoff rows are never updated, and where a lease was, in between, must_move() undoes the transaction, or the delete
-- itself finds the lease by its key and so takes it as it is now.
--
-- Lock order, everywhere: submit_key, a namespace's pauses and a worker's name (advisory locks), worker_session, circuit by circuit_id, live rows by
-- (task_id, step_no), join_wait by (task_id, step_no, stripe) with the root stripes last, history. Every bound array is
-- sorted first. (A claim's share of worker_session comes later: whoever has one for itself waits for nothing after it.)
--
-- No foreign keys and no triggers: each costs microseconds per step, and the verbs keep what they would have kept.

create table namespace (
  namespace_id int generated always as identity primary key,
  name         text not null unique check (name ~ '^[a-z0-9._-]{1,63}$'),
  created_at   timestamptz not null default now()
);
comment on table namespace is 'A tenant. Nothing on the hot path touches two of them.';

create table template (
  template_id   int generated always as identity primary key,
  namespace_id  int not null,
  name          text not null,
  version       text not null,
  version_order text[] collate "C" not null,   -- sorts as semver sorts: see store.versionOrder
  prerelease    boolean not null,
  body          bytea not null,                -- tasker.v1.Template, binary
  digest        bytea not null,                -- SHA-256 of body with the version left out
  created_at    timestamptz not null default now(),
  created_by    text not null default '',
  unique (namespace_id, name, version)
);
comment on table template is 'Named, versioned definitions of steps. A version never changes; tasks copy what they need at submit.';

create table lane (
  lane_id      int generated always as identity primary key,
  namespace_id int not null,
  handler      text not null,
  circuit      text not null default '',
  priority     smallint not null check (priority between 0 and 3),
  unique (namespace_id, handler, circuit, priority)
);
comment on table lane is 'What a claim takes or leaves as a whole: (namespace, handler, circuit, priority). Priority 0 is the most urgent.';

create table submit_key (
  namespace_id int not null,
  key          text not null,
  digest       bytea not null,
  task_id      bigint not null,
  created_at   timestamptz not null default now(),
  primary key (namespace_id, key)
);
comment on table submit_key is 'Idempotency keys of submits. Kept until the task ended and 7 days passed.';

create table worker_session (
  session_id    int generated always as identity primary key,
  namespace_id  int not null,
  worker_id     text not null,
  instance_id   text not null,
  replica_id    uuid not null,                 -- the one server that may grant to this session
  epoch         int not null default 1,        -- rises whenever replica_id or max_in_flight changes: the grant's fence
  max_in_flight int not null check (max_in_flight > 0),
  handlers      text[] not null,
  labels        text[],
  build_id      text not null default '',
  client_info   text not null default '',
  opened_at     timestamptz not null default now(),
  seen_at       timestamptz not null default now(),
  drained_at    timestamptz,                   -- set by DrainWorker: no grant after its commit
  closed_at     timestamptz,                   -- its last stream ended
  unique (namespace_id, worker_id, instance_id)
) with (fillfactor = 50);
comment on table worker_session is 'A worker process: (worker_id, instance_id). All its streams and polls share one capacity.';

create sequence task_number_seq increment 1024; -- hi-lo: one nextval gives a server 1,024 task numbers
comment on sequence task_number_seq is 'task_id = shard << 54 | number << 14; step_id = task_id + step_no.';
create sequence history_seq cache 32;

create type step_end_state as enum ('complete', 'resolved_manually', 'cancelled');
create type task_end_state as enum ('complete', 'error', 'cancelled');
create type park_reason as enum ('permanent', 'exhausted', 'lease_expired', 'deadline_exceeded');
create type dispatch_outcome as enum ('success', 'retryable_failure', 'permanent_failure', 'timed_out', 'lost_lease',
  'released', 'undelivered', 'deadline_exceeded', 'cancelled');
create type delay_source as enum ('backoff', 'retry_after', 'retry_at', 'header_seconds', 'header_date', 'header_unreadable');
create type history_kind as enum ('submitted', 'dispatched', 'confirmed', 'concluded', 'late', 'retried', 'resolved',
  'completed', 'cancelled', 'parked', 'task_ended', 'task_reopened', 'purged', 'retention');

-- ---------------------------------------------------------------- big: insert-only, by task_id

create table task (
  task_id          bigint not null,
  namespace_id     int not null,
  name             text not null,
  template_name    text,
  template_version text,
  context          text not null,              -- one JSON object, verbatim, never parsed here
  labels           text[],                     -- 'key=value', sorted; NULL when none
  step_count       int not null,
  not_before       timestamptz,
  deadline         timestamptz,
  trace_context    text,
  created_by       text not null default '',
  created_at       timestamptz not null,
  primary key (task_id)
) partition by range (task_id);

create table step (
  task_id             bigint not null,
  step_no             int not null,            -- 1 … 10,000
  lane_id             int not null,
  retry_limit         int not null check (retry_limit between 1 and 1000),
  retryable           boolean not null,
  max_lost_leases     smallint not null check (max_lost_leases > 0),
  name                text not null,
  parents             int[],                   -- NULL when none
  children            int[],                   -- children whose only parent is this step: woken without a counter.
                                               -- 2147483647 is the task's own end
  join_children       int[],                   -- children with several parents, and beside each:
  join_stripe         smallint[],              --   the counter this arrival bumps (-1: the only one, 0 … 15: one of 16)
  join_need           int[],                   --   the arrivals that close that counter
  backoff_initial     interval,                -- NULL: 2 s
  backoff_multiplier  float8,                  -- NULL: 2
  backoff_max         interval,                -- NULL: 30 s
  backoff_jitter      float8,                  -- NULL: 0.1
  max_retry_after     interval,                -- NULL: 24 h
  lease_duration      interval,                -- NULL: 30 s, or more for workers that announce no heartbeats
  run_timeout         interval,                -- handler_config.timeout; NULL: none
  max_elapsed         interval,
  non_retryable_codes text[],
  handler_config      text,                    -- one JSON object, verbatim; NULL: {}
  primary key (task_id, step_no)
) partition by range (task_id);

create table step_end (
  task_id     bigint not null,
  step_no     int not null,
  state       step_end_state not null,
  attempts    int not null,
  failures    int not null,
  dispatches  int not null,                    -- of a success: the dispatch that made it
  lost_leases smallint not null,
  epoch       int not null,
  event_no    int not null,
  session_id  int,
  token       uuid,
  digest      bytea,
  started_at  timestamptz,
  ended_at    timestamptz not null,
  results     text,
  actor       text,
  reason      text,
  primary key (task_id, step_no)
) partition by range (task_id);

create table step_failure (
  task_id         bigint not null,
  step_no         int not null,
  dispatch        int not null,
  outcome         dispatch_outcome not null,
  counted         boolean not null,            -- whether it rose `attempts`
  attempt         int not null,                -- attempts after it
  failures        int not null,                -- failed conclusions after it: the exponent of the delay
  lost_leases     smallint not null,
  epoch           int not null,
  event_no        int not null,
  session_id      int not null,
  token           uuid not null,
  digest          bytea,                       -- NULL: concluded by the server
  started_at      timestamptz,
  ended_at        timestamptz not null,        -- the anchor of the delay
  base_delay      interval,                    -- next_retry_at = ended_at + base_delay + jitter, exactly
  jitter          interval,
  next_retry_at   timestamptz,
  delay_source    delay_source,
  delay_clamped   boolean not null default false,
  backoff_request interval,                    -- the server-directed delay in force: shown as backoff_request_seconds
  error_code      text,
  message         text,
  error_class     text,
  http_status     int,
  stack_trace     text,
  details         text,
  primary key (task_id, step_no, dispatch)
) partition by range (task_id);

create table late_report (
  task_id     bigint not null,
  step_no     int not null,
  dispatch    int not null,
  outcome     dispatch_outcome not null,
  digest      bytea not null,
  error_code  text,
  message     text,
  results     text,
  recorded_at timestamptz not null,
  reports     int not null default 1,          -- how often it was reported; only the first is kept
  primary key (task_id, step_no, dispatch)
) partition by range (task_id);

create table task_end (
  task_id  bigint not null,
  state    task_end_state not null,
  ended_at timestamptz not null,
  primary key (task_id)
) partition by range (task_id);

create table join_wait (
  task_id bigint not null,
  step_no int not null,
  stripe  smallint not null,                   -- -1: root
  need    int not null,
  arrived int not null,
  primary key (task_id, step_no, stripe)
) partition by range (task_id);

create table checkpoint (
  task_id    bigint not null,
  step_no    int not null,
  dispatch   int not null,
  body       text not null,
  updated_at timestamptz not null,
  primary key (task_id, step_no)
) partition by range (task_id);

-- ---------------------------------------------------------------- small: the live rows

create sequence ready_seq cache 1;

create table ready (
  lane_id          int not null,
  seq              bigint not null default nextval('ready_seq'),
  task_id          bigint not null,
  step_no          int not null,
  attempts         int not null default 0,
  failures         int not null default 0,
  dispatches       int not null default 0,
  epoch            int not null default 1,
  event_no         int not null default 0,
  lost_leases      smallint not null default 0,
  undelivered      smallint not null default 0,  -- in a row
  released         smallint not null default 0,  -- in a row
  skipped          smallint not null default 0,  -- accounting = SKIP, in a row
  started          boolean not null default false,
  runnable_at      timestamptz not null,
  last_token       uuid,                         -- of the dispatch that came back without a result
  first_started_at timestamptz,                  -- kept only where the step has max_elapsed
  primary key (lane_id, seq)
);
create unique index ready_step on ready (task_id, step_no);

create table backoff (
  lane_id          int not null,
  due_at           timestamptz not null,
  task_id          bigint not null,
  step_no          int not null,
  attempts         int not null,
  failures         int not null,
  dispatches       int not null,
  epoch            int not null,
  event_no         int not null,
  lost_leases      smallint not null,
  undelivered      smallint not null,
  released         smallint not null,
  skipped          smallint not null,
  started          boolean not null,
  last_token       uuid,
  first_started_at timestamptz,
  primary key (task_id, step_no)
);
create index backoff_due on backoff (lane_id, due_at);

create table lease (
  task_id          bigint not null,
  step_no          int not null,
  lane_id          int not null,
  session_id       int not null,
  token            uuid not null,
  attempts         int not null,
  failures         int not null,
  dispatches       int not null,
  epoch            int not null,
  event_no         int not null,
  lost_leases      smallint not null,
  undelivered      smallint not null,
  released         smallint not null,
  skipped          smallint not null,
  started          boolean not null,
  seq              bigint,                       -- where it stood: ready.seq, or
  due_at           timestamptz,                  --   backoff.due_at
  runnable_at      timestamptz not null,
  first_started_at timestamptz,
  granted_at       timestamptz not null,
  confirmed_at     timestamptz,
  until            timestamptz not null,         -- the delivery lease until it is confirmed, then the lease
  lease_duration   interval not null,
  run_timeout      interval,
  stop_at          timestamptz,                  -- task deadline or max_elapsed, whichever is first
  primary key (task_id, step_no)
) with (fillfactor = 70);

create table parked (
  task_id          bigint not null,
  step_no          int not null,
  lane_id          int not null,
  reason           park_reason not null,
  error_code       text not null,
  parked_at        timestamptz not null,
  attempts         int not null,
  failures         int not null,
  dispatches       int not null,
  epoch            int not null,
  event_no         int not null,
  lost_leases      smallint not null,
  undelivered      smallint not null,
  released         smallint not null,
  skipped          smallint not null,
  started          boolean not null,
  last_token       uuid,                         -- only where a late report may still be accepted
  first_started_at timestamptz,
  primary key (task_id, step_no)
);

create table deadline (
  due_at  timestamptz not null,
  task_id bigint not null,
  step_no int not null,                          -- 0: the whole task
  primary key (due_at, task_id, step_no)
);

-- ---------------------------------------------------------------- the record

create table history (
  history_id     bigint not null default nextval('history_seq'),
  recorded_at    timestamptz not null,           -- clock_timestamp(), read while the rows' locks were held
  namespace_id   int,
  kind           history_kind not null,
  outcome        dispatch_outcome,               -- of `concluded` and `late`
  actor          text,                           -- of operator acts
  reason         text,
  task_ids       bigint[] not null,
  step_nos       int[],                          -- NULL: a fact about whole tasks
  event_nos      int[],                          -- dense per step, from 1; 0: a `late` report, which changes nothing
  dispatches     int[],
  epochs         int[],
  session_ids    int[],
  attempts       int[],
  failures       int[],
  lost_leases    smallint[],
  states         text[],                         -- where it leaves the step (or task)
  delay_sources  text[],
  base_delays    interval[],
  jitters        interval[],
  next_retry_ats timestamptz[],
  error_codes    text[]
) partition by range (recorded_at);
comment on table history is 'Append-only: every dispatch, report, lost lease and operator act. One row may hold a whole batch as arrays of equal length. No verb reads it.';
-- Arrays of a batch are a few kilobytes: compressing them costs more time than it saves log.
alter table history
  alter task_ids set storage external, alter step_nos set storage external, alter event_nos set storage external,
  alter dispatches set storage external, alter epochs set storage external, alter session_ids set storage external,
  alter attempts set storage external, alter failures set storage external, alter lost_leases set storage external,
  alter next_retry_ats set storage external, alter base_delays set storage external, alter jitters set storage external;
create table history_default partition of history default;

create table partition_drop (
  partition  text not null,
  dropped_at timestamptz not null default now(),
  from_value text not null,
  to_value   text not null
);
comment on table partition_drop is 'What retention has dropped.';

-- The live tables stay small, so autovacuum is asked to come by count, unthrottled, and never to shorten the file (which
-- takes an exclusive lock). Their statistics do not matter: the hot statements have one possible plan.
do $$
declare
  live text;
begin
  foreach live in array array['ready', 'backoff', 'lease', 'parked'] loop
    execute format('alter table %I set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
      autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0,
      autovacuum_analyze_threshold = 2147483647, vacuum_truncate = off)', live);
  end loop;
end
$$;

---- create above / drop below ----

drop table history, partition_drop, deadline, parked, lease, backoff, ready, checkpoint, join_wait, task_end, late_report,
  step_failure, step_end, step, task, worker_session, submit_key, lane, template, namespace;
drop sequence ready_seq, history_seq, task_number_seq;
drop type history_kind, delay_source, dispatch_outcome, park_reason, task_end_state, step_end_state;
