-- Concludes failed runs under their tokens: the step waits in backoff, or is parked for good. A token whose lease is gone is
-- passed by. Safe as complete.sql is: locked before moved, all that was locked or nothing; step_failure's key is the last
-- guard against recording twice. Arguments come sorted by (task_id, step_no): the lock order.
--
--   counted    every failure, unless it asked not to be (at most 100 times in a row)
--   parked     permanent | the step is not retryable | its code is listed | attempts = retry_limit | past its deadline
--   delay      the server-directed one when there is one, clamped to [0, max_retry_after]; else backoff_delay() + jitter
--   anchor     the report's own instant, so that a long run does not eat its Retry-After
--
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 outcome text[], $5 digest bytea[] (null: by the server),
-- $6 skip boolean[], $7 hint_after interval[], $8 hint_at timestamptz[], $9 delay_source text[], $10 jitter float8[] in [0, 1),
-- $11 error_code text[], $12 message text[], $13 error_class text[], $14 http_status int[], $15 stack_trace text[],
-- $16 details text[], $17 namespace_id int, $18 token uuid[]
with locked as materialized (
  select l.*, report.outcome::dispatch_outcome as outcome, report.digest, report.hint_after, report.hint_at,
    report.delay_source::delay_source as delay_source, report.jitter, report.error_code, report.message,
    report.error_class, report.http_status, report.stack_trace, report.details,
    s.retry_limit, s.retryable, s.non_retryable_codes, s.backoff_initial, s.backoff_multiplier, s.backoff_max,
    s.max_elapsed, coalesce(s.backoff_jitter, 0.1) as jitter_share, coalesce(s.max_retry_after, interval '24 hours') as max_retry_after,
    not (report.skip and l.skipped < 100) as counted,
    coalesce($1, clock_timestamp()) as ended_at
  from unnest($2::bigint[], $3::int[], $4::text[], $5::bytea[], $6::boolean[], $7::interval[], $8::timestamptz[], $9::text[],
    $10::float8[], $11::text[], $12::text[], $13::text[], $14::int[], $15::text[], $16::text[], $18::uuid[])
    as report (task_id, step_no, outcome, digest, skip, hint_after, hint_at, delay_source, jitter, error_code, message,
      error_class, http_status, stack_trace, details, token)
  cross join lateral (
    select lease.ctid as tid, lease.*
    from lease
    where lease.task_id = report.task_id and lease.step_no = report.step_no and lease.token = report.token
    limit 1
    for update
  ) l
  cross join lateral (
    select step.retry_limit, step.retryable, step.non_retryable_codes, step.backoff_initial, step.backoff_multiplier,
      step.backoff_max, step.backoff_jitter, step.max_retry_after, step.max_elapsed
    from step
    where step.task_id = report.task_id and step.step_no = report.step_no
    limit 1
  ) s
),
gone as (
  delete from lease where ctid = any (array(select tid from locked))
  returning 1
),
judged as materialized (
  select *,
    attempts + counted::int as attempts_after,
    failures + 1 as failures_after,
    case
      when outcome = 'deadline_exceeded' then 'deadline_exceeded'::park_reason
      when outcome = 'permanent_failure' or not retryable or error_code = any (non_retryable_codes) then 'permanent'
      when attempts + counted::int >= retry_limit then 'exhausted'
    end as park,
    -- asked for is NULL unless the failing service said when to come back
    case
      when hint_after is not null then hint_after
      when hint_at is not null then make_interval(secs => extract(epoch from hint_at - ended_at)::float8)
    end as asked_for
  from locked
),
delayed as materialized (
  select *,
    case when park is null and asked_for is not null
      then make_interval(secs => extract(epoch from greatest(least(asked_for, max_retry_after), interval '0'))::float8)
    end as backoff_request,
    case when park is null then
      case when asked_for is not null
        then make_interval(secs => extract(epoch from greatest(least(asked_for, max_retry_after), interval '0'))::float8)
        else backoff_delay(failures_after, backoff_initial, backoff_multiplier, backoff_max)
      end
    end as base_delay,
    coalesce(park is null and (asked_for > max_retry_after or asked_for < interval '0'), false) as clamped
  from judged
),
timed as materialized (
  select *,
    case when park is null then
      -- never added to a server-directed delay
      case when asked_for is null then make_interval(secs => extract(epoch from base_delay)::float8 * jitter_share * jitter) else interval '0' end
    end as jitter_delay
  from delayed
),
concluded as materialized (
  select *,
    ended_at + base_delay + jitter_delay as next_retry_at,
    case when park is not null then null when asked_for is null and delay_source is distinct from 'header_unreadable' then 'backoff'::delay_source else delay_source end as source,
    coalesce(nullif(error_code, ''), case park when 'exhausted' then 'RETRIES_EXHAUSTED' when 'deadline_exceeded' then 'DEADLINE_EXCEEDED' else 'FAILED' end) as park_code
  from timed
),
failed as (
  insert into step_failure (task_id, step_no, dispatch, outcome, counted, attempt, failures, lost_leases, epoch, event_no,
    session_id, token, digest, started_at, ended_at, base_delay, jitter, next_retry_at, delay_source, delay_clamped,
    backoff_request, error_code, message, error_class, http_status, stack_trace, details)
  select task_id, step_no, dispatches, outcome, counted, attempts_after, failures_after, lost_leases, epoch, event_no + 1,
    session_id, token, digest, coalesce(confirmed_at, granted_at), ended_at, base_delay, jitter_delay, next_retry_at, source, clamped,
    backoff_request, error_code, message, error_class, http_status, stack_trace, details
  from concluded
),
waiting as (
  insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started, first_started_at)
  select lane_id, next_retry_at, task_id, step_no, attempts_after, failures_after, dispatches, epoch, event_no + 1,
    lost_leases, 0, 0, case when counted then 0 else skipped + 1 end, true, first_started_at
  from concluded where park is null
),
stopped as (
  insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch,
    event_no, lost_leases, undelivered, released, skipped, started, first_started_at)
  select task_id, step_no, lane_id, park, park_code, ended_at, attempts_after, failures_after, dispatches, epoch,
    event_no + 1, lost_leases, 0, 0, 0, true, first_started_at
  from concluded where park is not null
),
limited as (
  insert into deadline (due_at, task_id, step_no)
  select first_started_at + max_elapsed, task_id, step_no
  from concluded where park is null and max_elapsed is not null and first_started_at is not null
  on conflict do nothing
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, outcome, task_ids, step_nos, event_nos, dispatches, epochs,
    session_ids, attempts, failures, lost_leases, states, delay_sources, base_delays, jitters, next_retry_ats, error_codes)
  select max(ended_at), $17, 'concluded', outcome, array_agg(task_id), array_agg(step_no), array_agg(event_no + 1),
    array_agg(dispatches), array_agg(epoch), array_agg(session_id), array_agg(attempts_after), array_agg(failures_after),
    array_agg(lost_leases), array_agg(case when park is null then 'backoff' else 'parked' end), array_agg(source::text),
    array_agg(base_delay), array_agg(jitter_delay), array_agg(next_retry_at), array_agg(error_code)
  from concluded group by outcome
)
select must_move((select count(*) from gone), (select count(*)::int from locked)) as moved,
  task_id, step_no, token, lane_id, dispatches, epoch, attempts_after, failures_after, retry_limit, lost_leases,
  park::text as park, ended_at, next_retry_at, base_delay + jitter_delay as applied_delay, source::text as delay_source, clamped, error_code
from concluded
