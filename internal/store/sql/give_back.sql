-- Concludes dispatches that ended without a result, whose leases this transaction holds: the step goes back to where it
-- stood, keeping its place (unless it was a circuit's probe), under no lease; its attempts are untouched.
--
--   undelivered  never confirmed: free 5 times in a row, then lost
--   released     handed back by the worker: free 100 times in a row, then lost
--   lost_lease   counted; at max_lost_leases the step is parked (a step that kills its workers must not go on)
--
-- The token is kept in the row: until somebody else is granted the step, its late report is still accepted.
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 outcome text[], $5 delay interval[] (of a release; null: none),
-- $6 namespace_id int
with locked as materialized (
  select l.*, s.max_lost_leases, s.max_elapsed, back.delay, coalesce($1, clock_timestamp()) as ended_at,
    case
      when back.outcome = 'undelivered' and l.undelivered >= 5 then 'lost_lease'
      when back.outcome = 'released' and l.released >= 100 then 'lost_lease'
      else back.outcome
    end::dispatch_outcome as outcome
  from unnest($2::bigint[], $3::int[], $4::text[], $5::interval[]) as back (task_id, step_no, outcome, delay)
  cross join lateral (
    select lease.ctid as tid, lease.*
    from lease
    where lease.task_id = back.task_id and lease.step_no = back.step_no
    limit 1
  ) l
  cross join lateral (
    select step.max_lost_leases, step.max_elapsed from step where step.task_id = back.task_id and step.step_no = back.step_no limit 1
  ) s
),
gone as (
  delete from lease where ctid = any (array(select tid from locked))
  returning 1
),
concluded as materialized (
  select *,
    lost_leases + (outcome = 'lost_lease')::int as lost_after,
    outcome = 'lost_lease' and lost_leases + 1 >= max_lost_leases as poisoned,
    case when outcome = 'undelivered' then undelivered + 1 else 0 end as undelivered_after,
    case when outcome = 'released' then released + 1 else 0 end as released_after,
    started or confirmed_at is not null as started_after,
    case when delay > interval '0' then ended_at + delay when probe and due_at is not null then ended_at else due_at end as due_after,
    -- A probe that came to nothing stands last: the next one is another step, so that no single step keeps a circuit open.
    case when probe and seq is not null then nextval('ready_seq') else seq end as seq_after,
    case when probe then ended_at else runnable_at end as runnable_after
  from locked
),
returned_ready as (
  insert into ready (lane_id, seq, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started, runnable_at, last_token, first_started_at)
  select lane_id, seq_after, task_id, step_no, attempts, failures, dispatches, epoch, event_no + 1, lost_after,
    undelivered_after, released_after, skipped, started_after, runnable_after, token, first_started_at
  from concluded where not poisoned and due_after is null
),
returned_backoff as (
  insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started, last_token, first_started_at)
  select lane_id, due_after, task_id, step_no, attempts, failures, dispatches, epoch, event_no + 1, lost_after,
    undelivered_after, released_after, skipped, started_after, token, first_started_at
  from concluded where not poisoned and due_after is not null
),
stopped as (
  insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch,
    event_no, lost_leases, undelivered, released, skipped, started, last_token, first_started_at)
  select task_id, step_no, lane_id, 'lease_expired', 'LEASE_EXPIRED', ended_at, attempts, failures, dispatches, epoch,
    event_no + 1, lost_after, 0, 0, skipped, true, token, first_started_at
  from concluded where poisoned
),
limited as (
  insert into deadline (due_at, task_id, step_no)
  select first_started_at + max_elapsed, task_id, step_no
  from concluded where not poisoned and max_elapsed is not null and first_started_at is not null
  on conflict do nothing
),
failed as (
  insert into step_failure (task_id, step_no, dispatch, outcome, counted, attempt, failures, lost_leases, epoch, event_no,
    session_id, token, started_at, ended_at, error_code)
  select task_id, step_no, dispatches, 'lost_lease', false, attempts, failures, lost_after, epoch, event_no + 1,
    session_id, token, coalesce(confirmed_at, granted_at), ended_at, 'LEASE_EXPIRED'
  from concluded where outcome = 'lost_lease'
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, outcome, task_ids, step_nos, event_nos, dispatches, epochs,
    session_ids, attempts, failures, lost_leases, states, next_retry_ats)
  select max(ended_at), $6, 'concluded', outcome, array_agg(task_id), array_agg(step_no), array_agg(event_no + 1),
    array_agg(dispatches), array_agg(epoch), array_agg(session_id), array_agg(attempts), array_agg(failures),
    array_agg(lost_after::smallint),
    array_agg(case when poisoned then 'parked' when due_after is null then 'ready' else 'backoff' end),
    array_agg(case when not poisoned then due_after end)
  from concluded group by outcome
)
select must_move((select count(*) from gone), cardinality($2::bigint[])) as moved,
  task_id, step_no, token, session_id, lane_id, dispatches, outcome::text as outcome, poisoned,
  case when not poisoned and due_after is null then seq_after end as seq, case when not poisoned then due_after end as due_at
from concluded
