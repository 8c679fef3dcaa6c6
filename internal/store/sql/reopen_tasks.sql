-- Takes back the recorded end in error of tasks that can go on, and puts them under their deadlines again. It runs after a step of each was taken from its place,
-- in a fresh snapshot: a settle that held that step's row has committed by then, and its note is seen.
-- $1 at timestamptz, $2 task_id bigint[] (sorted), $3 namespace_id int, $4 actor text, $5 reason text
with reopened as (
  delete from task_end where task_id = any ($2::bigint[]) and state = 'error'
  returning task_id
),
limited as (
  -- A deadline that has passed was dropped when nothing waited under it any more.
  insert into deadline (due_at, task_id, step_no)
  select t.deadline, t.task_id, 0
  from unnest($2::bigint[]) as given (task_id)
  cross join lateral (select task.task_id, task.deadline from task where task.task_id = given.task_id limit 1) t
  where t.deadline is not null
  on conflict do nothing
)
insert into history (recorded_at, namespace_id, kind, actor, reason, task_ids, states)
select coalesce($1, clock_timestamp()), $3, 'task_reopened', $4, $5, array_agg(task_id), array_agg('in_progress'::text)
from reopened having count(*) > 0
