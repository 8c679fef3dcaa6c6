-- A task's state is nowhere stored: it is derived from its steps, in one statement, whenever it is asked for.

create or replace function task_state_at(of_task bigint, at timestamptz)
returns setof task_execution
language sql stable
as $$
  select
    counted.task_id,
    case
      when counted.completed = counted.total then 'complete'
      when counted.cancelled > 0 then 'cancelled'
      when counted.failed > 0 and counted.live = 0 then 'error'
      when counted.is_started then 'in_progress'
      else 'pending'
    end,
    counted.total,
    counted.total - counted.in_progress - counted.completed - counted.failed - counted.ready - counted.waiting
      - counted.cancelled,
    counted.in_progress,
    counted.completed,
    counted.failed,
    counted.ready,
    counted.waiting,
    counted.cancelled,
    counted.execution_status,
    case counted.execution_status
      when 'all_complete' then 'finalize_task'
      when 'has_ready_steps' then 'execute_ready_steps'
      when 'processing' then 'wait_for_completion'
      when 'waiting_for_retry' then 'wait_for_retry'
      when 'blocked_by_failures' then 'handle_failures'
      when 'cancelled' then 'none'
      else 'wait_for_dependencies'
    end,
    round(counted.completed * 100.0 / greatest(counted.total, 1), 2),
    case
      when counted.cancelled > 0 then 'unknown'
      when counted.execution_status = 'blocked_by_failures' then 'blocked'
      when counted.failed > 0 or counted.waiting > 0 then 'recovering'
      else 'healthy'
    end
  from (
    select
      task.task_id,
      task.step_count as total,
      ended.completed,
      ended.cancelled,
      running.steps as in_progress,
      failed.steps as failed,
      queued.admitted + delayed.admitted as ready,
      queued.steps - queued.admitted + delayed.due - delayed.admitted + delayed.retrying as waiting,
      queued.steps + delayed.steps + running.steps as live,
      ended.completed > 0 or queued.is_started or delayed.is_started or running.is_started or failed.is_started
        as is_started,
      case
        when ended.completed = task.step_count then 'all_complete'
        when queued.admitted + delayed.admitted > 0 then 'has_ready_steps'
        when running.steps > 0 then 'processing'
        when queued.steps + delayed.due + delayed.retrying > 0 then 'waiting_for_retry'
        when failed.steps > 0 then 'blocked_by_failures'
        when ended.cancelled > 0 then 'cancelled'
        else 'waiting_for_dependencies'
      end as execution_status
    from (
      select t.task_id, t.step_count from task t where t.task_id = of_task limit 1
    ) as task
    cross join lateral (
      select count(*) filter (where state <> 'cancelled')::int as completed,
             count(*) filter (where state = 'cancelled')::int as cancelled
      from step_end
      where step_end.task_id = of_task
    ) as ended
    -- A task has started once any run of it was confirmed or concluded; rows carry that for ever.
    cross join lateral (
      select count(*)::int as steps,
             -- what its circuit or a pause keeps back waits as one does that backs off
             count(*) filter (where not lane.is_paused
               and (lane.circuit_id is null
                 or circuit_admits(lane.circuit_id, lane.lane_id, of_task, ready.step_no, at)))::int as admitted,
             coalesce(bool_or(started or failures > 0), false) as is_started
      from ready
      cross join lateral (
        select l.lane_id, l.circuit_id, exists (select from pauses_over(l.namespace_id, l.handler, at)) as is_paused
        from lane l where l.lane_id = ready.lane_id limit 1
      ) as lane
      where ready.task_id = of_task
    ) as queued
    cross join lateral (
      select count(*)::int as steps,
             count(*) filter (where due_at <= coalesce(at, now()))::int as due,
             count(*) filter (where due_at <= coalesce(at, now()) and not lane.is_paused
               and (lane.circuit_id is null
                 or circuit_admits(lane.circuit_id, lane.lane_id, of_task, backoff.step_no, at)))::int as admitted,
             count(*) filter (where due_at > coalesce(at, now()) and failures > 0)::int as retrying,
             coalesce(bool_or(started or failures > 0), false) as is_started
      from backoff
      cross join lateral (
        select l.lane_id, l.circuit_id, exists (select from pauses_over(l.namespace_id, l.handler, at)) as is_paused
        from lane l where l.lane_id = backoff.lane_id limit 1
      ) as lane
      where backoff.task_id = of_task
    ) as delayed
    cross join lateral (
      select count(*)::int as steps,
             coalesce(bool_or(started or failures > 0 or confirmed_at is not null), false) as is_started
      from lease
      where lease.task_id = of_task
    ) as running
    cross join lateral (
      select count(*)::int as steps, coalesce(bool_or(started or failures > 0), false) as is_started
      from parked
      where parked.task_id = of_task
    ) as failed
  ) as counted
$$;
comment on function task_state_at(bigint, timestamptz) is
  'State and counts of a task at an instant (NULL: now). get_task_execution_context shows it.';

create or replace function task_execution_at(task_ids bigint[], at timestamptz)
returns setof task_execution
language sql stable
as $$
  select execution.*
  from (select distinct id from unnest(task_ids) as given (id)) as wanted
  cross join lateral task_state_at(wanted.id, at) as execution
  order by execution.task_id
$$;
comment on function task_execution_at(bigint[], timestamptz) is 'task_state_at for several tasks, each counted once.';

create or replace function get_task_execution_context(task_id bigint)
returns setof task_execution
language sql stable security definer
set search_path from current set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
  select execution.* from task_state_at(get_task_execution_context.task_id, now()) as execution
$$;
comment on function get_task_execution_context(bigint) is
'One row: the task''s state, its steps counted, and what to do about it. An unknown task gives no row. One snapshot.
The columns (also: \d+ task_execution):
  task_id                  the task''s id
  status                   pending, in_progress, complete, error, cancelled
  total_steps              the sum of the seven buckets below
  pending_steps            not ready: parents unfinished, or deferred and never failed
  in_progress_steps        under a lease
  completed_steps          complete or resolved_manually
  failed_steps             failed for good
  ready_steps              may run now, due retries included
  waiting_for_retry_steps  failed, not due yet
  cancelled_steps          cancelled with the task
  execution_status         first that holds: all_complete, has_ready_steps, processing, waiting_for_retry,
                           blocked_by_failures, cancelled, waiting_for_dependencies
  recommended_action       finalize_task, execute_ready_steps, wait_for_completion, wait_for_retry, handle_failures,
                           none, wait_for_dependencies
  completion_percentage    completed_steps of total_steps, two decimals
  health_status            healthy, recovering, blocked, unknown (cancelled)';

create or replace function get_task_execution_contexts_batch(task_ids bigint[])
returns setof task_execution
language sql stable security definer
set search_path from current set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
  select execution.* from task_execution_at(get_task_execution_contexts_batch.task_ids, now()) as execution
$$;
comment on function get_task_execution_contexts_batch(bigint[]) is
  'get_task_execution_context for several tasks, by task, in one snapshot. The same columns.';
