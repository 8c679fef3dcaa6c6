-- The row types of the SQL surface. They are named types, not "returns table", so that each column carries a comment of
-- its own (\dT+, \d+ step_readiness) and a function's argument may bear the name of a column. Later releases only add
-- attributes at the end.

create type step_readiness as (
  workflow_step_id        bigint,
  task_id                 bigint,
  name                    text,
  current_state           text,
  dependencies_satisfied  boolean,
  retry_eligible          boolean,
  ready_for_execution     boolean,
  last_failure_at         timestamptz,
  next_retry_at           timestamptz,
  total_parents           int,
  completed_parents       int,
  attempts                int,
  retry_limit             int,
  backoff_request_seconds numeric,
  last_attempted_at       timestamptz,
  dispatches              int,
  lost_leases             int,
  error_code              text,
  circuit                 text,
  blocked_by              text[],
  last_started_at         timestamptz,
  epoch                   int
);
comment on type step_readiness is 'One step as get_step_readiness_status shows it: its state, and whether and when it may run.';
comment on column step_readiness.workflow_step_id is 'The step''s id: task_id plus its number in the task, as the contract prints it.';
comment on column step_readiness.task_id is 'The task''s id, as the contract prints it.';
comment on column step_readiness.name is 'The step''s name, unique in its task.';
comment on column step_readiness.current_state is 'pending, in_progress, complete, error, cancelled or resolved_manually. A step that backs off or failed for good is in error; the booleans tell which.';
comment on column step_readiness.dependencies_satisfied is 'Every parent is complete or resolved_manually.';
comment on column step_readiness.retry_eligible is 'current_state is pending or error, it has not failed for good, and next_retry_at is NULL or past. Says nothing of its parents.';
comment on column step_readiness.ready_for_execution is 'Would be granted to the next worker with room: retry_eligible, dependencies satisfied, no live lease, not deferred.';
comment on column step_readiness.last_failure_at is 'When the last failure since the last reset was recorded. Lost leases are no failures. NULL: none.';
comment on column step_readiness.next_retry_at is 'Earliest instant of the next run of a failed step, jitter included. NULL: never failed, failed for good, running or ended.';
comment on column step_readiness.total_parents is 'How many steps it depends on.';
comment on column step_readiness.completed_parents is 'How many of them are complete or resolved_manually.';
comment on column step_readiness.attempts is 'Concluded runs that count towards retry_limit, since the last reset.';
comment on column step_readiness.retry_limit is 'How many runs the step may have in all, the first included.';
comment on column step_readiness.backoff_request_seconds is 'The delay that the failing service asked for (retry_after), after clamping. last_attempted_at plus this is next_retry_at. NULL: it asked for none, or the step is complete or was reset.';
comment on column step_readiness.last_attempted_at is 'When the last run since the last reset was concluded: the time of its report, not of its start.';
comment on column step_readiness.dispatches is 'How many leases were ever granted. Never restarts.';
comment on column step_readiness.lost_leases is 'Leases that ended without a result, since the last reset.';
comment on column step_readiness.error_code is 'Of the last failure since the last reset, or why the step is parked (LEASE_EXPIRED, DEADLINE_EXCEEDED). NULL: none, or complete.';
comment on column step_readiness.circuit is 'The circuit its handler''s calls share. NULL: none.';
comment on column step_readiness.blocked_by is 'Names of what a blocked step waits for: first the ancestors, however far, that failed for good and keep it from running until an operator acts, then its unfinished parents; at most 32. NULL: not blocked.';
comment on column step_readiness.last_started_at is 'When the last run since the last reset started. NULL: none.';
comment on column step_readiness.epoch is 'Rises by one at each reset (RetryStep); attempts and lost_leases count within it.';

create type task_execution as (
  task_id                 bigint,
  status                  text,
  total_steps             int,
  pending_steps           int,
  in_progress_steps       int,
  completed_steps         int,
  failed_steps            int,
  ready_steps             int,
  waiting_for_retry_steps int,
  cancelled_steps         int,
  execution_status        text,
  recommended_action      text,
  completion_percentage   numeric,
  health_status           text
);
comment on type task_execution is 'One task as get_task_execution_context shows it. Each step is counted in exactly one bucket; the seven buckets sum to total_steps.';
comment on column task_execution.task_id is 'The task''s id, as the contract prints it.';
comment on column task_execution.status is 'pending (no run began yet), in_progress, complete, error (a step failed for good and nothing else can run) or cancelled.';
comment on column task_execution.total_steps is 'How many steps the task has.';
comment on column task_execution.pending_steps is 'Not ready: their parents have not all ended well, or they are deferred and never failed.';
comment on column task_execution.in_progress_steps is 'Under a lease now.';
comment on column task_execution.completed_steps is 'complete or resolved_manually.';
comment on column task_execution.failed_steps is 'Failed for good: permanent, exhausted, poisoned or past the deadline.';
comment on column task_execution.ready_steps is 'ready_for_execution, retries that are due included.';
comment on column task_execution.waiting_for_retry_steps is 'Failed, and not due yet.';
comment on column task_execution.cancelled_steps is 'Cancelled with their task.';
comment on column task_execution.execution_status is 'The first that holds: all_complete, has_ready_steps, processing, waiting_for_retry, blocked_by_failures, cancelled, waiting_for_dependencies.';
comment on column task_execution.recommended_action is 'What execution_status asks for: finalize_task, execute_ready_steps, wait_for_completion, wait_for_retry, handle_failures, none (cancelled) or wait_for_dependencies.';
comment on column task_execution.completion_percentage is 'completed_steps of total_steps, in per cent, two decimals.';
comment on column task_execution.health_status is 'healthy (no step failed for good or waits for a retry), recovering (some do, and something can still run), blocked (a step failed for good, and nothing runs until an operator acts) or unknown (cancelled).';

create type step_dependency_level as (
  workflow_step_id bigint,
  dependency_level int
);
comment on type step_dependency_level is 'A step''s depth in its task''s graph.';
comment on column step_dependency_level.workflow_step_id is 'The step''s id.';
comment on column step_dependency_level.dependency_level is '0 for a step without parents, else one more than its deepest parent''s.';

---- create above / drop below ----

drop type step_dependency_level, task_execution, step_readiness cascade;
