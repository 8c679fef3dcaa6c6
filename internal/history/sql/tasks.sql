-- Every task that the history, the task table or the table of ends knows of, by id.
-- submits, ends …: how often the history says so. An array of a submit is one element a task.
with told as (
  select entry.task_id,
    count(*) filter (where history.kind = 'submitted') as submits,
    max(entry.attempts) filter (where history.kind = 'submitted') as submitted_steps,
    count(*) filter (where history.kind = 'purged') as purges,
    count(*) filter (where history.kind = 'task_ended' and entry.state = 'complete') as completes,
    count(*) filter (where history.kind = 'task_ended' and entry.state = 'error') as errors,
    count(*) filter (where history.kind = 'task_ended' and entry.state = 'cancelled') as cancels,
    count(*) filter (where history.kind = 'task_reopened') as reopens
  from history
  cross join lateral unnest(history.task_ids, history.attempts, history.states) as entry (task_id, attempts, state)
  where history.step_nos is null and history.kind <> 'retention'
  group by entry.task_id
)
select coalesce(told.task_id, task.task_id, task_end.task_id) as task_id,
  coalesce(told.submits, 0)::int as submits, coalesce(told.submitted_steps, 0)::int as submitted_steps,
  coalesce(told.purges, 0)::int as purges, coalesce(told.completes, 0)::int as completes, coalesce(told.errors, 0)::int as errors,
  coalesce(told.cancels, 0)::int as cancels, coalesce(told.reopens, 0)::int as reopens,
  task.task_id is not null as is_stored, coalesce(task.step_count, 0) as step_count,
  task.not_before > task.created_at as is_deferred, task.not_before, task_end.state::text as end_state, task.created_at,
  task.deadline
from told
full join task on task.task_id = told.task_id
full join task_end on task_end.task_id = coalesce(told.task_id, task.task_id)
order by 1
