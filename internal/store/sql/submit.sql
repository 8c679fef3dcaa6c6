-- Stores whole tasks and makes their roots runnable. New rows under fresh ids: nobody else can be touching them.
-- Steps whose task starts later wait in backoff until not_before. A step without a name is stored already, by COPY, which costs
-- less than this from some hundred steps on: only roots are given so, and only to be made runnable.
-- An array of one element stands for all rows: most batches are of one template, and what is the same for all is sent once.
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
  select task_id, $2,
    case cardinality($4::text[]) when 1 then ($4::text[])[1] else name end,
    case cardinality($5::text[]) when 1 then ($5::text[])[1] else template_name end,
    case cardinality($6::text[]) when 1 then ($6::text[])[1] else template_version end, context, labels::text[],
    case cardinality($9::int[]) when 1 then ($9::int[])[1] else step_count end, not_before, deadline, trace_context,
    case cardinality($13::text[]) when 1 then ($13::text[])[1] else created_by end, coalesce($1, now())
  from unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[], $10::timestamptz[],
    $11::timestamptz[], $12::text[], $13::text[])
    as t (task_id, name, template_name, template_version, context, labels, step_count, not_before, deadline, trace_context, created_by)
),
given as materialized (
  select task_id,
    case cardinality($15::int[]) when 1 then ($15::int[])[1] else step_no end as step_no,
    case cardinality($16::int[]) when 1 then ($16::int[])[1] else lane_id end as lane_id,
    case cardinality($17::text[]) when 1 then ($17::text[])[1] else name end as name,
    -- the rest is made up where it is used
    retry_limit, retryable, max_lost_leases, parents, children, join_children, join_stripe, join_need, backoff_initial,
    backoff_multiplier, backoff_max, backoff_jitter, max_retry_after, lease_duration, run_timeout, max_elapsed, non_retryable_codes,
    handler_config, not_before
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
  select task_id, step_no, lane_id, name,
    case cardinality($18::int[]) when 1 then ($18::int[])[1] else retry_limit end,
    case cardinality($19::boolean[]) when 1 then ($19::boolean[])[1] else retryable end,
    case cardinality($20::int[]) when 1 then ($20::int[])[1] else max_lost_leases end, parents::int[],
    -- one that stands for all is a subquery's, which is read from its text once
    case cardinality($22::text[]) when 1 then (select ($22::text[])[1]::int[]) else children::int[] end,
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
  from given where $36::timestamptz[] is not null and -- mostly null: then no row is looked at
    parents is null and not_before > coalesce($1, now())
  returning lane_id, due_at
),
limited as (
  insert into deadline (due_at, task_id, step_no)
  select deadline, task_id, 0
  from unnest($3::bigint[], $11::timestamptz[]) as t (task_id, deadline)
  where $11::timestamptz[] is not null and deadline is not null
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, attempts)
  -- `attempts` of a submit is each task's number of steps
  select coalesce($1, clock_timestamp()), $2, 'submitted', $3::bigint[],
    case cardinality($9::int[]) when 1 then array_fill(($9::int[])[1], array[cardinality($3::bigint[])]) else $9::int[] end
  where cardinality($3::bigint[]) > 0
)
select lane_id, min(seq) as seq, count(*)::int as count, null::timestamptz as due_at, coalesce($1, now()) as created_at from root group by lane_id
union all
select lane_id, null, count(*)::int, min(due_at), coalesce($1, now()) from deferred group by lane_id
