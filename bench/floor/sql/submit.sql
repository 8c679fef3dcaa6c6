-- Accepts a batch of tasks and makes their first steps ready.
--
--   $1 bigint[] tasks             $2 int[] step count of each
--   $3 bigint[] task of each step $4 int[] step_no $5 int[] lane_id $6 text[] sole_children
--   $7 text[] join_children $8 text[] join_parents (array literals: SQL has no arrays of unequal arrays)
--   $9 bytea[] context            $10 boolean[] has no parents
--
-- Returns the number of steps made ready.
with new_task as (
  insert into task (task_id, namespace_id, template, step_count)
  select task_id, 1, 'floor', step_count
  from unnest($1::bigint[], $2::int[]) as submitted (task_id, step_count)
),
submitted as materialized (
  select task_id, step_no, lane_id, sole_children, join_children, join_parents, context, is_root
  from unnest($3::bigint[], $4::int[], $5::int[], $6::text[], $7::text[], $8::text[], $9::bytea[], $10::boolean[])
    as submitted (task_id, step_no, lane_id, sole_children, join_children, join_parents, context, is_root)
),
new_step as (
  insert into step (task_id, step_no, lane_id, name, sole_children, join_children, join_parents, context)
  select task_id, step_no, lane_id, 'no_op', sole_children::int[], join_children::int[], join_parents::int[], context
  from submitted
),
root as (
  insert into ready (lane_id, task_id, step_no, attempts, dispatches, lost_leases, epoch, event_no)
  select lane_id, task_id, step_no, 0, 0, 0, 1, 1
  from submitted
  where is_root
  returning task_id
),
entry as (
  insert into history (at, kind, task_ids, step_nos, event_nos)
  select clock_timestamp(), 1, array_agg(task_id), array_agg(step_no), array_agg(1)
  from submitted
)
select count(*) from root;
