-- Stores whole tasks and makes their roots runnable. New rows under fresh ids: nobody else can be touching them.
-- Steps whose task starts later wait in backoff until not_before. Steps that COPY has stored before, which costs less from some
-- hundred on, are not among the steps, but their roots are among the roots.
-- Most batches are of one template. So a column of which all rows are alike is given once: where two numbers stand beside a
-- column, the first is the value of all rows, and the second an array of theirs; one of the two is null, both where none has any.
-- $1 at timestamptz, $2 namespace_id int,
-- tasks: $3 task_id bigint[], $4 $5 name text, $6 $7 template_name text, $8 $9 template_version text, $10 context text[],
--   $11 labels text[] (array literals), $12 $13 step_count int, $14 not_before timestamptz[], $15 deadline timestamptz[],
--   $16 trace_context text[], $17 $18 created_by text
-- steps: $19 task_id bigint[], $20 $21 step_no int, $22 $23 lane_id int, $24 $25 name text, $26 $27 retry_limit int,
--   $28 $29 retryable boolean, $30 $31 max_lost_leases int, $32 parents text[], $33 $34 children text, $35 join_children text[],
--   $36 join_stripe text[], $37 join_need text[] (array literals, null: none), $38 backoff_initial interval[],
--   $39 backoff_multiplier float8[], $40 backoff_max interval[], $41 backoff_jitter float8[], $42 max_retry_after interval[],
--   $43 lease_duration interval[], $44 run_timeout interval[], $45 max_elapsed interval[],
--   $46 non_retryable_codes text[] (array literals), $47 handler_config text[]
-- roots, the steps without parents: $48 task_id bigint[], $49 $50 step_no int, $51 $52 lane_id int, $53 not_before timestamptz[]
with new_task as (
  insert into task (task_id, namespace_id, name, template_name, template_version, context, labels, step_count, not_before,
    deadline, trace_context, created_by, created_at)
  select task_id, $2, coalesce($4::text, name), coalesce($6::text, template_name), coalesce($8::text, template_version), context,
    labels::text[], coalesce($12::int, step_count), not_before, deadline, trace_context, coalesce($17::text, created_by),
    coalesce($1, now())
  from unnest($3::bigint[], $5::text[], $7::text[], $9::text[], $10::text[], $11::text[], $13::int[], $14::timestamptz[],
    $15::timestamptz[], $16::text[], $18::text[])
    as t (task_id, name, template_name, template_version, context, labels, step_count, not_before, deadline, trace_context, created_by)
),
new_step as (
  insert into step (task_id, step_no, lane_id, name, retry_limit, retryable, max_lost_leases, parents, children, join_children,
    join_stripe, join_need, backoff_initial, backoff_multiplier, backoff_max, backoff_jitter, max_retry_after, lease_duration,
    run_timeout, max_elapsed, non_retryable_codes, handler_config)
  select task_id, coalesce($20::int, step_no), coalesce($22::int, lane_id), coalesce($24::text, name), coalesce($26::int, retry_limit),
    coalesce($28::boolean, retryable), coalesce($30::int, max_lost_leases), parents::int[],
    coalesce((select $33::text::int[]), children::int[]), -- a subquery's value is read from its text once
    join_children::int[], join_stripe::smallint[], join_need::int[], backoff_initial, backoff_multiplier, backoff_max,
    backoff_jitter, max_retry_after, lease_duration, run_timeout, max_elapsed, non_retryable_codes::text[], handler_config
  from unnest($19::bigint[], $21::int[], $23::int[], $25::text[], $27::int[], $29::boolean[], $31::int[], $32::text[], $34::text[],
    $35::text[], $36::text[], $37::text[], $38::interval[], $39::float8[], $40::interval[], $41::float8[], $42::interval[],
    $43::interval[], $44::interval[], $45::interval[], $46::text[], $47::text[])
    as s (task_id, step_no, lane_id, name, retry_limit, retryable, max_lost_leases, parents, children, join_children, join_stripe,
      join_need, backoff_initial, backoff_multiplier, backoff_max, backoff_jitter, max_retry_after, lease_duration, run_timeout,
      max_elapsed, non_retryable_codes, handler_config)
),
root as (
  insert into ready (lane_id, task_id, step_no, runnable_at)
  select coalesce($51::int, lane_id), task_id, coalesce($49::int, step_no), coalesce($1, now())
  from unnest($48::bigint[], $50::int[], $52::int[], $53::timestamptz[]) as r (task_id, step_no, lane_id, not_before)
  where not_before is null or not_before <= coalesce($1, now())
  returning lane_id, seq
),
deferred as (
  insert into backoff (lane_id, due_at, task_id, step_no, attempts, failures, dispatches, epoch, event_no, lost_leases,
    undelivered, released, skipped, started)
  select coalesce($51::int, lane_id), not_before, task_id, coalesce($49::int, step_no), 0, 0, 0, 1, 0, 0, 0, 0, 0, false
  from unnest($48::bigint[], $50::int[], $52::int[], $53::timestamptz[]) as r (task_id, step_no, lane_id, not_before)
  where $53::timestamptz[] is not null and not_before > coalesce($1, now()) -- mostly null: then no row is looked at
  returning lane_id, due_at
),
limited as (
  insert into deadline (due_at, task_id, step_no)
  select deadline, task_id, 0
  from unnest($3::bigint[], $15::timestamptz[]) as t (task_id, deadline)
  where $15::timestamptz[] is not null and deadline is not null
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, task_ids, attempts)
  -- `attempts` of a submit is each task's number of steps
  select coalesce($1, clock_timestamp()), $2, 'submitted', $3::bigint[],
    coalesce($13::int[], array_fill($12::int, array[cardinality($3::bigint[])]))
  where cardinality($3::bigint[]) > 0
)
select lane_id, min(seq) as seq, count(*)::int as count, null::timestamptz as due_at, coalesce($1, now()) as created_at from root group by lane_id
union all
select lane_id, null, count(*)::int, min(due_at), coalesce($1, now()) from deferred group by lane_id
