-- The tables a step's life passes through, and nothing else: no settings, names, sessions or operator verbs.
--
--   submit     task, step, and a row in `ready` for each step without parents
--   claim      `ready` or a due row of `backoff`  ->  `lease`
--   complete   `lease`  ->  `step_end`; the last parent to end puts its child in `ready`, the last step puts its
--              task in `task_end`
--
-- Every table outlives its rows' moves in one of two ways. What was said (task, step, step_end, task_end, history) is
-- only ever inserted. What is going on (ready, backoff, lease, join_wait) stays as small as the work in hand.

create schema tasker_bench_floor;
set local search_path = tasker_bench_floor;

-- What was said -------------------------------------------------------------------------------------------------------

create table task (
  task_id      bigint      not null primary key,
  namespace_id int         not null,
  template     text        not null,
  step_count   int         not null,
  created_at   timestamptz not null default now()
) partition by range (task_id);

-- A step row carries its children, so that a completion finds them in the one row it reads anyway.
create table step (
  task_id       bigint   not null,
  step_no       int      not null check (step_no between 1 and 10000),
  lane_id       int      not null,
  name          text     not null,
  retry_limit   smallint not null default 3,
  sole_children int[],  -- children with no other parent: ready as soon as this step ends
  join_children int[],  -- children with several parents, counted down in join_wait
  join_parents  int[],  -- how many parents each of join_children has
  context       bytea,
  primary key (task_id, step_no)
) partition by range (task_id);

-- The primary key is what makes a result recorded exactly once.
create table step_end (
  task_id  bigint      not null,
  step_no  int         not null,
  dispatch int         not null,
  attempt  int         not null,
  epoch    int         not null,
  digest   bytea       not null check (octet_length(digest) = 32),
  result   bytea,
  ended_at timestamptz not null,
  primary key (task_id, step_no)
) partition by range (task_id);

create table task_end (
  task_id  bigint      not null primary key,
  ended_at timestamptz not null
) partition by range (task_id);

-- One entry a batch: the arrays run in parallel, one element a step. event_nos counts each step's events from 1
-- without a gap, so that a reader can tell a complete record from a torn one.
create table history (
  at          timestamptz not null,
  kind        smallint    not null check (kind in (1, 2, 3)),  -- 1 submitted, 2 dispatched, 3 completed
  task_ids    bigint[]    not null,
  step_nos    int[]       not null,
  event_nos   int[]       not null,
  dispatches  int[],
  session_ids int[]
) partition by range (at);

create table task_all     partition of task     for values from (minvalue) to (maxvalue);
create table step_all     partition of step     for values from (minvalue) to (maxvalue);
create table step_end_all partition of step_end for values from (minvalue) to (maxvalue);
create table task_end_all partition of task_end for values from (minvalue) to (maxvalue);
create table history_all  partition of history  for values from (minvalue) to (maxvalue);

-- A batch's arrays are too long to stay in the row. Compressing them would save less than a twentieth of the log and
-- cost more time than it saves: kept apart as they are.
alter table history_all alter task_ids set storage external;
alter table history_all alter step_nos set storage external;
alter table history_all alter event_nos set storage external;
alter table history_all alter dispatches set storage external;
alter table history_all alter session_ids set storage external;

-- What is going on ----------------------------------------------------------------------------------------------------

-- The second key of `ready` and of `backoff` is the way from a step to its row, and the guard against a step standing
-- in the table twice.
create table ready (
  lane_id     int    not null,
  seq         bigint not null generated always as identity,
  task_id     bigint not null,
  step_no     int    not null,
  attempts    int    not null,
  dispatches  int    not null,
  lost_leases int    not null,
  epoch       int    not null,
  event_no    int    not null,
  primary key (lane_id, seq),
  unique (task_id, step_no)
);

create table backoff (
  lane_id     int         not null,
  due_at      timestamptz not null,
  task_id     bigint      not null,
  step_no     int         not null,
  attempts    int         not null,
  dispatches  int         not null,
  lost_leases int         not null,
  epoch       int         not null,
  event_no    int         not null,
  primary key (lane_id, due_at, task_id, step_no),
  unique (task_id, step_no)
);

-- The token is random and stored, never computed: after a restore the same dispatch number may be granted again, and
-- the report of its first holder must not pass for the second's.
create table lease (
  task_id     bigint      not null,
  step_no     int         not null,
  lane_id     int         not null,
  token       uuid        not null,
  session_id  int         not null,
  until       timestamptz not null,
  attempts    int         not null,
  dispatches  int         not null,
  lost_leases int         not null,
  epoch       int         not null,
  event_no    int         not null,
  primary key (task_id, step_no)
);

create table join_wait (
  task_id bigint not null,
  step_no int    not null,
  parents int    not null,
  arrived int    not null check (arrived <= parents),
  primary key (task_id, step_no)
);

-- Tables this small and this busy are vacuumed by the count of dead rows alone, at full speed, and never analyzed:
-- each statement has one possible plan and no use for statistics of a table that is empty one second and full the next.
-- Giving the empty tail back to the system would take an exclusive lock in the middle of the traffic.
alter table ready     set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                           autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2147483647, vacuum_truncate = off);
alter table backoff   set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                           autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2147483647, vacuum_truncate = off);
alter table lease     set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                           autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2147483647, vacuum_truncate = off);
alter table join_wait set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                           autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 2147483647, vacuum_truncate = off,
                           fillfactor = 50);

-- must_match undoes a transaction that moved other rows than it had locked. The error code is the one a client answers
-- by running the whole transaction again.
create function must_match(moved bigint, locked bigint) returns bigint language plpgsql as $$
begin
  if moved is distinct from locked then
    raise exception 'moved % rows, but had locked %', moved, locked using errcode = 'serialization_failure';
  end if;
  return moved;
end $$;
