-- Records the end in error of a task whose parked rows this transaction holds (lock_parked.sql), if nothing else of it can
-- run. It must be a transaction of its own, after the failure's commit: two last failures that each looked inside their
-- own transaction would each see the other still running.
-- $1 at timestamptz, $2 task_id bigint
with ended as (
  insert into task_end (task_id, state, ended_at)
  select task.task_id, 'error', coalesce($1, clock_timestamp())
  from task
  where task.task_id = $2
    and exists (select from parked where parked.task_id = $2)
    and not exists (select from ready where ready.task_id = $2)
    and not exists (select from backoff where backoff.task_id = $2)
    and not exists (select from lease where lease.task_id = $2)
  on conflict (task_id) do nothing
  returning task_id, ended_at
)
insert into history (recorded_at, namespace_id, kind, task_ids, states)
select ended.ended_at, task.namespace_id, 'task_ended', array[ended.task_id], array['error']
from ended join task on task.task_id = ended.task_id
