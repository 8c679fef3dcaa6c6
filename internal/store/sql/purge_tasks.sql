-- Deletes ended tasks with everything that belongs to them. Their parked rows are locked (lock_parked_of.sql), so none is
-- re-opened meanwhile; tasks that have not ended are left alone.
-- $1 at timestamptz, $2 task_id bigint[] (sorted), $3 ended_before timestamptz (null: any), $4 namespace_id int (null: retention's
-- own act, over all), $5 actor text, $6 keep_keys boolean, $7 reason text
with ended as materialized (
  select task_end.task_id, task.namespace_id
  from unnest($2::bigint[]) as given (task_id)
  cross join lateral (
    select e.task_id, e.ended_at from task_end e where e.task_id = given.task_id limit 1
  ) task_end
  cross join lateral (
    select t.namespace_id from task t where t.task_id = given.task_id limit 1
  ) task
  where $3::timestamptz is null or task_end.ended_at < $3
),
gone as materialized (select array(select task_id from ended order by task_id) as ids),
keys as (
  delete from submit_key where task_id = any ((select ids from gone)::bigint[]) and not $6
),
parked_rows as (delete from parked where task_id = any ((select ids from gone)::bigint[])),
deadlines as (delete from deadline where task_id = any ((select ids from gone)::bigint[])),
waits as (delete from join_wait where task_id = any ((select ids from gone)::bigint[])),
checkpoints as (delete from checkpoint where task_id = any ((select ids from gone)::bigint[])),
late_reports as (delete from late_report where task_id = any ((select ids from gone)::bigint[])),
failures as (delete from step_failure where task_id = any ((select ids from gone)::bigint[])),
step_ends as (delete from step_end where task_id = any ((select ids from gone)::bigint[])),
steps as (delete from step where task_id = any ((select ids from gone)::bigint[])),
task_ends as (delete from task_end where task_id = any ((select ids from gone)::bigint[])),
tasks as (
  delete from task where task_id = any ((select ids from gone)::bigint[]) returning task_id
),
recorded as (
  insert into history (recorded_at, namespace_id, kind, actor, reason, task_ids)
  select coalesce($1, clock_timestamp()), $4, 'purged', $5, $7::text, array_agg(task_id order by task_id) from tasks having count(*) > 0
)
select count(*)::int from tasks
