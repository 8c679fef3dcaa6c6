-- Stores whole tasks and makes their roots runnable. New rows under fresh ids: nobody else can be touching them.
-- Steps whose task starts later wait in backoff until not_before. A step without a name is stored already, by COPY, which costs
-- less than this from some hundred steps on: only roots are given so, and only to be made runnable.
-- $1 at timestamptz, $2 namespace_id int,
-- tasks: $3 task_id bigint[], $4 name text[], $5 template_name text[], $6 template_version text[], $7 context text[], $8 labels text[]
--   (array literals), $9 step_count int[], $10 not_before timestamptz[], $11 deadline timestamptz[], $12 trace_context text[], $13 created_by text[]
-- steps: $14 task_id bigint[], $15 step_no int[], $16 lane_id int[], $17 name text[], $18 retry_limit int[], $19 retryable boolean[],
--   $20 max_lost_leases int[], $21 parents text[], $22 children text[], $23 join_children text[], $24 join_stripe text[], $25 join_need text[]
--   (array literals, null: none), $26 backoff_initial interval[], $27 backoff_multiplier float8[], $28 backoff_max interval[],
--   $29 backoff_jitter float8[], $30 max_retry_after interval[], $31 lease_duration interval[], $32 run_timeout interval[],
--   $33 max_elapsed interval[], $34 non_retryable_codes text[] (array literals), $35 handler_config text[], $36 not_before timestamptz[]
with new_task as (
  insert into task (task_id, namespace_id, name, template_name, template_version, context, labels, step_count, not_before,
    deadline, trace_context, created_by, created_at)
  select task_id, $2, name, template_name, template_version, context, labels::text[], step_count, not_before, deadline,
    trace_context, created_by, coalesce($1, now())
  from unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[], $10::timestamptz[],
    $11::timestamptz[], $12::text[], $13::text[])
    as t (task_id, name, template_name, template_version, context, labels, step_count, not_before, deadline, trace_context, created_by)
  returning task_id, step_count, deadline
),
given as materialized (
  select *
  from unnest($14::bigint[], $15::int[], $16::int[], $17::text[], $18::int[], $19::boolean[], $20::int[], $21::text[], $22::text[],
    $23::text[], $24::text[], $25::text[], $26::interval[], $27::float8[], $28::interval[], $29::float8[], $30::interval[],
    $31::interval[], $32::interval[], $33::interval[], $34::text[], $35::text[], $36::timestamptz[])
    as s (task_id, step_no, lane_id, name, retry_limit, retryable, max_lost_leases, parents, children, join_children, join_stripe,
      join_need, backoff_initial, backoff_multiplier, backoff_max, backoff_jitter, max_retry_after, lease_duration, run_timeout,
      max_elapsed, non_retryable_codes, handler_config, not_before)
),
new_step as (
  insert into step (task_id, step_no, lane_id, name, retry_limit, retryable, max_lost_leases, parents, children, join_children,
    join_stripe, join_need, backoff_initial, backoff_multiplier, backoff_max, backoff_jitter, max_retry_after, lease_duration,
    run_timeout, max_elapsed, non_retryable_codes, handler_config)
  select task_id, step_no, lane_id, name, retry_limit, retryable, max_lost_leases, parents::int[], children::int[],
    join_children::int[], join_stripe::smallint[], join_need::int[], backoff_initial, backoff_multiplier, backoff_max,
    backoff_jitter, max_retry_after, lease_duration, run_timeout, max_elapsed, non_retryable_codes::text[], handler_config
  from given where name is not null
),
root as (
  insert into ready (lane_id, task_id, step_no, runnable_at)
  select lane_id, task_id, step_no, coalesce($1, now())
  from given where parents is null and (not_before is null or not_before <= coalesce($1, now()))
  returning lane_id, seq
),
deferred as (
  insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started)
  select lane_id, not_before, task_id, step_no, 0, 0, 0, 1, 0, 0, 0, 0, 0, false
  from given where parents is null and not_before > coalesce($1, now())
  returning lane_id, due_at
),
limited as (
  insert into deadline (due_at, task_id, step_no)
  select deadline, task_id, 0 from new_task where deadline is not null
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, attempts)
  -- `attempts` of a submit is each task's number of steps
  select coalesce($1, clock_timestamp()), $2, 'submitted', array_agg(task_id), array_agg(step_count) from new_task having count(*) > 0
)
select lane_id, min(seq) as seq, count(*)::int as count, null::timestamptz as due_at, coalesce($1, now()) as created_at from root group by lane_id
union all
select lane_id, null, count(*)::int, min(due_at), coalesce($1, now()) from deferred group by lane_id
