-- Views over the same rows. Name a task_id in WHERE when reading step_attempts_v: it makes each branch a look-up.

create or replace view step_attempts_v as
select
  run.task_id + run.step_no as workflow_step_id,
  run.task_id,
  run.step_no,
  step.name,
  lane.handler,
  run.dispatch,
  run.attempt,
  run.epoch,
  run.outcome,
  run.counted,
  session.worker_id,
  session.instance_id,
  run.granted_at,
  run.started_at,
  run.ended_at,
  extract(epoch from run.ended_at - run.started_at) as duration_seconds,
  run.error_code,
  run.message,
  run.error_class,
  run.http_status,
  run.stack_trace,
  run.details,
  extract(epoch from run.base_delay + run.jitter) as delay_seconds,
  extract(epoch from run.base_delay) as base_delay_seconds,
  extract(epoch from run.jitter) as jitter_seconds,
  run.delay_source,
  run.delay_clamped,
  extract(epoch from run.backoff_request) as backoff_request_seconds,
  run.next_retry_at,
  run.late_outcome,
  run.late_error_code,
  run.late_message,
  run.late_results,
  run.late_recorded_at,
  run.late_reports,
  namespace.name as namespace,
  nullif(lane.circuit, '') as circuit
from (
  select failure.task_id, failure.step_no, failure.dispatch, failure.attempt, failure.epoch, failure.outcome::text as outcome,
         failure.counted, failure.session_id, null::timestamptz as granted_at, failure.started_at, failure.ended_at,
         failure.error_code, failure.message, failure.error_class, failure.http_status, failure.stack_trace, failure.details,
         failure.base_delay, failure.jitter, failure.delay_source::text as delay_source, failure.delay_clamped,
         failure.backoff_request, failure.next_retry_at,
         late.outcome::text as late_outcome, late.error_code as late_error_code, late.message as late_message,
         late.results as late_results, late.recorded_at as late_recorded_at, late.reports as late_reports
  from step_failure as failure
  left join late_report as late
    on late.task_id = failure.task_id and late.step_no = failure.step_no and late.dispatch = failure.dispatch
  -- A lost lease whose report came after all and was accepted is shown as what was reported.
  where failure.outcome <> 'lost_lease' or not exists (
    select from step_end as ended
    where ended.task_id = failure.task_id and ended.step_no = failure.step_no and ended.dispatches = failure.dispatch
      and ended.state = 'complete' and ended.token is not null)
  union all
  -- An ending without a token is an operator's, not a run's.
  select ended.task_id, ended.step_no, ended.dispatches, ended.attempts, ended.epoch,
         case ended.state when 'complete' then 'success' else 'cancelled' end,
         ended.state = 'complete', ended.session_id, null, ended.started_at, ended.ended_at,
         null, null, null, null, null, null, null, null, null, false, null, null,
         late.outcome::text, late.error_code, late.message, late.results, late.recorded_at, late.reports
  from step_end as ended
  left join late_report as late
    on late.task_id = ended.task_id and late.step_no = ended.step_no and late.dispatch = ended.dispatches
  where ended.token is not null
  union all
  select lease.task_id, lease.step_no, lease.dispatches, lease.attempts + 1, lease.epoch, null,
         null, lease.session_id, lease.granted_at, lease.confirmed_at, null,
         null, null, null, null, null, null, null, null, null, false, null, null,
         null, null, null, null, null, null
  from lease
  union all
  -- Dispatches that came back without a result leave a row only when somebody reported on them after all.
  select late.task_id, late.step_no, late.dispatch, null, null, null,
         false, null, null, null, null,
         null, null, null, null, null, null, null, null, null, false, null, null,
         late.outcome::text, late.error_code, late.message, late.results, late.recorded_at, late.reports
  from late_report as late
  where not exists (
      select from step_failure as failure
      where failure.task_id = late.task_id and failure.step_no = late.step_no and failure.dispatch = late.dispatch)
    and not exists (
      select from step_end as ended
      where ended.task_id = late.task_id and ended.step_no = late.step_no and ended.dispatches = late.dispatch
        and ended.token is not null)
) as run
join step on step.task_id = run.task_id and step.step_no = run.step_no
join lane on lane.lane_id = step.lane_id
join namespace on namespace.namespace_id = lane.namespace_id
left join worker_session as session on session.session_id = run.session_id;
comment on view step_attempts_v is 'Every dispatch that was concluded or runs now: who, when, how it ended, and what delay followed and why. Dispatches handed back without a result stand in history_v only. Filter by task_id.';
comment on column step_attempts_v.workflow_step_id is 'The step''s id.';
comment on column step_attempts_v.task_id is 'The task''s id.';
comment on column step_attempts_v.step_no is 'The step''s number in the task.';
comment on column step_attempts_v.name is 'The step''s name.';
comment on column step_attempts_v.handler is 'The kind of work.';
comment on column step_attempts_v.dispatch is 'Number of the lease: 1 for the first, never restarting.';
comment on column step_attempts_v.attempt is 'The step''s attempts after this dispatch; of a running one, the number it will have if it counts.';
comment on column step_attempts_v.epoch is 'Which reset it belongs to; attempts restart with each.';
comment on column step_attempts_v.outcome is 'success, retryable_failure, permanent_failure, timed_out, lost_lease, deadline_exceeded or cancelled. NULL: running, or only a late report is known.';
comment on column step_attempts_v.counted is 'Whether it counted towards retry_limit. NULL: running.';
comment on column step_attempts_v.worker_id is 'The worker that had it.';
comment on column step_attempts_v.instance_id is 'That worker''s process.';
comment on column step_attempts_v.granted_at is 'Of a running one: when its lease was granted.';
comment on column step_attempts_v.started_at is 'When it was confirmed to run. NULL: never.';
comment on column step_attempts_v.ended_at is 'When its end was recorded. NULL: running.';
comment on column step_attempts_v.duration_seconds is 'ended_at less started_at.';
comment on column step_attempts_v.error_code is 'As reported, or the server''s LEASE_EXPIRED, TIMED_OUT, DEADLINE_EXCEEDED.';
comment on column step_attempts_v.message is 'As reported.';
comment on column step_attempts_v.error_class is 'As reported.';
comment on column step_attempts_v.http_status is 'As reported.';
comment on column step_attempts_v.stack_trace is 'As reported.';
comment on column step_attempts_v.details is 'As reported: one JSON object.';
comment on column step_attempts_v.delay_seconds is 'Delay before the next run, jitter included: next_retry_at less ended_at. NULL: no further run.';
comment on column step_attempts_v.base_delay_seconds is 'The delay without jitter.';
comment on column step_attempts_v.jitter_seconds is 'What was added at random.';
comment on column step_attempts_v.delay_source is 'backoff, retry_after, retry_at, header_seconds, header_date, or header_unreadable (backoff applied).';
comment on column step_attempts_v.delay_clamped is 'The delay asked for was out of bounds and moved to the nearest.';
comment on column step_attempts_v.backoff_request_seconds is 'The delay the failing service asked for, after clamping.';
comment on column step_attempts_v.next_retry_at is 'ended_at plus delay. NULL: no further run.';
comment on column step_attempts_v.late_outcome is 'What its worker reported after the step had gone on without it. NULL: nothing.';
comment on column step_attempts_v.late_error_code is 'Of that late report.';
comment on column step_attempts_v.late_message is 'Of that late report.';
comment on column step_attempts_v.late_results is 'Of that late report: one JSON object.';
comment on column step_attempts_v.late_recorded_at is 'When the first late report came.';
comment on column step_attempts_v.late_reports is 'How many came.';
comment on column step_attempts_v.namespace is 'The tenant.';
comment on column step_attempts_v.circuit is 'The shared circuit that it called. NULL: none.';

create or replace view history_v as
select
  history.history_id,
  history.recorded_at,
  namespace.name as namespace,
  history.kind::text as kind,
  history.outcome::text as outcome,
  history.actor,
  history.reason,
  entry.task_id,
  entry.step_no,
  entry.task_id + entry.step_no as workflow_step_id,
  entry.event_no,
  entry.dispatch,
  entry.epoch,
  entry.session_id,
  entry.attempts,
  entry.failures,
  entry.lost_leases::int as lost_leases,
  entry.state,
  entry.delay_source,
  entry.base_delay,
  entry.jitter,
  entry.next_retry_at,
  entry.error_code
from history
left join namespace on namespace.namespace_id = history.namespace_id
cross join lateral unnest(history.task_ids, history.step_nos, history.event_nos, history.dispatches, history.epochs,
    history.session_ids, history.attempts, history.failures, history.lost_leases, history.states, history.delay_sources,
    history.base_delays, history.jitters, history.next_retry_ats, history.error_codes)
  as entry (task_id, step_no, event_no, dispatch, epoch, session_id, attempts, failures, lost_leases, state, delay_source,
    base_delay, jitter, next_retry_at, error_code);
comment on view history_v is 'The append-only record, one row an event: every dispatch, report, lost lease and operator act, kept by age.';
comment on column history_v.history_id is 'The record the event is in; a batch shares one.';
comment on column history_v.recorded_at is 'When it happened, read while the rows'' locks were held.';
comment on column history_v.namespace is 'The tenant.';
comment on column history_v.kind is 'submitted, dispatched, confirmed, concluded, late, retried, resolved, completed, cancelled, parked, task_ended, task_reopened, purged or retention.';
comment on column history_v.outcome is 'Of concluded and late: how the dispatch ended.';
comment on column history_v.actor is 'Who did it, of operator acts.';
comment on column history_v.reason is 'Why, as the operator said; of retention, what was dropped.';
comment on column history_v.task_id is 'The task.';
comment on column history_v.step_no is 'The step''s number in the task. NULL: a fact about the whole task.';
comment on column history_v.workflow_step_id is 'The step''s id. NULL: a fact about the whole task.';
comment on column history_v.event_no is 'Dense per step, from 1. 0: a late report, which changes nothing.';
comment on column history_v.dispatch is 'The dispatch it is about.';
comment on column history_v.epoch is 'The step''s epoch after it.';
comment on column history_v.session_id is 'The worker session.';
comment on column history_v.attempts is 'The step''s attempts after it.';
comment on column history_v.failures is 'The step''s failures since the reset, after it.';
comment on column history_v.lost_leases is 'The step''s lost leases after it.';
comment on column history_v.state is 'Where it leaves the step, or the task.';
comment on column history_v.delay_source is 'Where the delay came from.';
comment on column history_v.base_delay is 'The delay without jitter.';
comment on column history_v.jitter is 'What was added at random.';
comment on column history_v.next_retry_at is 'Earliest next run.';
comment on column history_v.error_code is 'The failure''s code.';

create or replace view system_health_counts as
select
  task_count.tasks as total_tasks,
  task_count.tasks - end_count.tasks as unfinished_tasks,
  end_count.complete as complete_tasks,
  end_count.error as error_tasks,
  end_count.cancelled as cancelled_tasks,
  ready_count.steps + backoff_count.due as ready_steps,
  lease_count.steps as in_progress_steps,
  lease_count.confirmed as confirmed_leases,
  backoff_count.waiting as waiting_for_retry_steps,
  backoff_count.deferred as deferred_steps,
  parked_count.steps as failed_steps,
  parked_count.permanent as permanent_steps,
  parked_count.exhausted as exhausted_steps,
  parked_count.lease_expired as lease_expired_steps,
  parked_count.deadline_exceeded as deadline_exceeded_steps,
  extract(epoch from now() - least(ready_count.oldest_at, backoff_count.oldest_at)) as oldest_ready_age_seconds,
  session_count.live as connected_workers,
  session_count.drained as drained_workers,
  (select count(*) from pg_stat_activity where datname = current_database()) as active_connections,
  current_setting('max_connections')::int as max_connections
from (select count(*) as tasks from task) as task_count
cross join (
  select count(*) as tasks,
         count(*) filter (where state = 'complete') as complete,
         count(*) filter (where state = 'error') as error,
         count(*) filter (where state = 'cancelled') as cancelled
  from task_end
) as end_count
cross join (select count(*) as steps, min(runnable_at) as oldest_at from ready) as ready_count
cross join (
  select count(*) filter (where due_at <= now()) as due,
         count(*) filter (where due_at > now() and failures > 0) as waiting,
         count(*) filter (where due_at > now() and failures = 0) as deferred,
         min(due_at) filter (where due_at <= now()) as oldest_at
  from backoff
) as backoff_count
cross join (
  select count(*) as steps, count(*) filter (where confirmed_at is not null) as confirmed from lease
) as lease_count
cross join (
  select count(*) as steps,
         count(*) filter (where reason = 'permanent') as permanent,
         count(*) filter (where reason = 'exhausted') as exhausted,
         count(*) filter (where reason = 'lease_expired') as lease_expired,
         count(*) filter (where reason = 'deadline_exceeded') as deadline_exceeded
  from parked
) as parked_count
cross join (
  select count(*) filter (where closed_at is null) as live,
         count(*) filter (where closed_at is null and drained_at is not null) as drained
  from worker_session
) as session_count;
comment on view system_health_counts is 'One row over the whole database. It counts every task that retention has kept, so ask at most every few seconds.';
comment on column system_health_counts.total_tasks is 'Tasks kept.';
comment on column system_health_counts.unfinished_tasks is 'Of these: not ended.';
comment on column system_health_counts.complete_tasks is 'Of these: complete.';
comment on column system_health_counts.error_tasks is 'Of these: ended in error.';
comment on column system_health_counts.cancelled_tasks is 'Of these: cancelled.';
comment on column system_health_counts.ready_steps is 'Steps that may run now, due retries included.';
comment on column system_health_counts.in_progress_steps is 'Steps under a lease.';
comment on column system_health_counts.confirmed_leases is 'Of these: confirmed by their worker.';
comment on column system_health_counts.waiting_for_retry_steps is 'Failed steps that are not due yet.';
comment on column system_health_counts.deferred_steps is 'Steps that never failed and wait for not_before or a release''s delay.';
comment on column system_health_counts.failed_steps is 'Steps that failed for good and wait for an operator.';
comment on column system_health_counts.permanent_steps is 'Of these: by a permanent failure.';
comment on column system_health_counts.exhausted_steps is 'Of these: attempts reached retry_limit.';
comment on column system_health_counts.lease_expired_steps is 'Of these: lost too many leases.';
comment on column system_health_counts.deadline_exceeded_steps is 'Of these: past the deadline.';
comment on column system_health_counts.oldest_ready_age_seconds is 'How long the oldest runnable step has been waiting. NULL: none waits.';
comment on column system_health_counts.connected_workers is 'Worker sessions with an open stream, or a recent poll.';
comment on column system_health_counts.drained_workers is 'Of these: drained.';
comment on column system_health_counts.active_connections is 'Connections to this database.';
comment on column system_health_counts.max_connections is 'Connections the server takes in all.';

create or replace view slowest_steps as
select
  ended.task_id + ended.step_no as workflow_step_id,
  ended.task_id,
  step.name,
  lane.handler,
  namespace.name as namespace,
  task.name as task_name,
  task.template_name,
  task.template_version,
  ended.duration_seconds,
  ended.attempts,
  ended.started_at,
  ended.ended_at
from (
  select task_id, step_no, attempts, started_at, ended_at, extract(epoch from ended_at - started_at) as duration_seconds
  from step_end
  where state = 'complete' and token is not null and started_at is not null and ended_at > now() - interval '24 hours'
  order by ended_at - started_at desc
  limit 100
) as ended
join step on step.task_id = ended.task_id and step.step_no = ended.step_no
join task on task.task_id = ended.task_id
join lane on lane.lane_id = step.lane_id
join namespace on namespace.namespace_id = task.namespace_id
order by ended.duration_seconds desc;
comment on view slowest_steps is 'The 100 longest successful runs that ended in the last 24 hours, the longest first.';
comment on column slowest_steps.workflow_step_id is 'The step''s id.';
comment on column slowest_steps.task_id is 'The task''s id.';
comment on column slowest_steps.name is 'The step''s name.';
comment on column slowest_steps.handler is 'The kind of work.';
comment on column slowest_steps.namespace is 'The tenant.';
comment on column slowest_steps.task_name is 'The task''s name.';
comment on column slowest_steps.template_name is 'Its template. NULL: inline steps.';
comment on column slowest_steps.template_version is 'Its template''s version.';
comment on column slowest_steps.duration_seconds is 'From the run''s confirmation to its report.';
comment on column slowest_steps.attempts is 'How many attempts it took in all, since the last reset.';
comment on column slowest_steps.started_at is 'When the run was confirmed.';
comment on column slowest_steps.ended_at is 'When its success was recorded.';
