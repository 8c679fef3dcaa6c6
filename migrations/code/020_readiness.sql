-- Readiness: a plain join of one task's rows. It reads the very rows a claim takes, so it cannot disagree with one.

-- step_readiness_at is the rule; its argument "at" is the instant it is asked for (NULL: now), so that a test may ask
-- about any instant. A task id given twice counts once; one that does not exist gives no row.
create or replace function step_readiness_at(task_ids bigint[], step_ids bigint[], at timestamptz)
returns setof step_readiness
language sql stable
as $$
  select
    wanted.task_id + shown.step_no,
    wanted.task_id,
    shown.name,
    shown.current_state,
    shown.completed_parents = shown.total_parents,
    shown.current_state in ('pending', 'error') and not shown.is_parked
      and (shown.next_retry_at is null or coalesce(at, now()) >= shown.next_retry_at),
    shown.is_ready,
    shown.last_failure_at,
    shown.next_retry_at,
    shown.total_parents,
    shown.completed_parents,
    shown.attempts,
    shown.retry_limit,
    shown.backoff_request_seconds,
    shown.last_attempted_at,
    shown.dispatches,
    shown.lost_leases,
    shown.error_code,
    shown.circuit,
    shown.blocked_by,
    shown.last_started_at,
    shown.epoch
  from (select distinct id as task_id from unnest(task_ids) as given (id)) as wanted
  cross join lateral (
    with recursive
    chosen as (
      select step.step_no, step.name, step.parents, step.retry_limit, step.lane_id
      from step
      where step.task_id = wanted.task_id
        and (step_ids is null or step.task_id + step.step_no = any (step_ids))
    ),
    -- Every unfinished, unblocked step stands in exactly one of the four.
    live as (
      select step_no, 'ready' as place, attempts, failures, dispatches, lost_leases, epoch,
             true as is_ready, null::text as error_code, null::timestamptz as started_at
      from ready where ready.task_id = wanted.task_id
      union all
      select step_no, 'backoff', attempts, failures, dispatches, lost_leases, epoch,
             due_at <= coalesce(at, now()), null, null
      from backoff where backoff.task_id = wanted.task_id
      union all
      select step_no, 'lease', attempts, failures, dispatches, lost_leases, epoch,
             false, null, coalesce(confirmed_at, granted_at)
      from lease where lease.task_id = wanted.task_id
      union all
      select step_no, 'parked', attempts, failures, dispatches, lost_leases, epoch,
             false, error_code, null
      from parked where parked.task_id = wanted.task_id
    ),
    ended as (
      select step_no, state, attempts, dispatches, lost_leases, epoch, token, started_at, ended_at
      from step_end
      where step_end.task_id = wanted.task_id
    ),
    failure as (
      select distinct on (step_no) step_no, epoch, ended_at, started_at, next_retry_at, backoff_request, error_code
      from step_failure
      where step_failure.task_id = wanted.task_id and outcome <> 'lost_lease'
      order by step_no, dispatch desc
    ),
    arrival as (
      select chosen.step_no, count(*)::int as completed_parents
      from chosen
      cross join lateral unnest(chosen.parents) as parent (step_no)
      join ended on ended.step_no = parent.step_no and ended.state in ('complete', 'resolved_manually')
      group by chosen.step_no
    ),
    -- No step below a failed one can fail too, so these never meet: tracing each costs at most the task's edges.
    failed as (
      select step_no from live where place = 'parked' order by step_no limit 32
    ),
    downstream (origin, step_no) as (
      select step_no, step_no from failed
      union
      select downstream.origin, child.step_no
      from downstream
      join step on step.task_id = wanted.task_id and step.step_no = downstream.step_no
      cross join lateral unnest(step.children || step.join_children) as child (step_no)
      where child.step_no < 2147483647
    ),
    blocked as (
      select chosen.step_no, chosen.parents
      from chosen
      left join live on live.step_no = chosen.step_no
      left join ended on ended.step_no = chosen.step_no
      where live.place is null and ended.state is null
    ),
    -- What stands in a blocked step's way: failed ancestors first, then unfinished parents.
    obstacle as (
      select blocked.step_no, downstream.origin as by_step_no, true as is_failed
      from blocked
      join downstream on downstream.step_no = blocked.step_no
      union
      select blocked.step_no, parent.step_no, failed.step_no is not null
      from blocked
      cross join lateral unnest(blocked.parents) as parent (step_no)
      left join ended on ended.step_no = parent.step_no
      left join failed on failed.step_no = parent.step_no
      where ended.state is null
    ),
    blocker as (
      select ranked.step_no, array_agg(step.name order by ranked.place) as names
      from (
        select obstacle.step_no, obstacle.by_step_no,
               row_number() over (partition by obstacle.step_no order by obstacle.is_failed desc, obstacle.by_step_no) as place
        from obstacle
      ) as ranked
      join step on step.task_id = wanted.task_id and step.step_no = ranked.by_step_no
      where ranked.place <= 32
      group by ranked.step_no
    )
    select
      chosen.step_no,
      chosen.name,
      case
        when ended.state is not null then ended.state::text
        when live.place = 'lease' then 'in_progress'
        when live.place = 'parked' or live.failures > 0 then 'error'
        else 'pending'
      end as current_state,
      coalesce(live.place = 'parked', false) as is_parked,
      coalesce(live.is_ready, false) as is_ready,
      failure.ended_at as last_failure_at,
      case when live.place in ('ready', 'backoff') then failure.next_retry_at end as next_retry_at,
      coalesce(cardinality(chosen.parents), 0) as total_parents,
      coalesce(arrival.completed_parents, 0) as completed_parents,
      coalesce(ended.attempts, live.attempts, 0) as attempts,
      chosen.retry_limit,
      case when ended.state is distinct from 'complete' then extract(epoch from failure.backoff_request) end
        as backoff_request_seconds,
      -- An ending without a token is an operator's, not a run's.
      case when ended.state = 'complete' and ended.token is not null then ended.ended_at else failure.ended_at end
        as last_attempted_at,
      coalesce(ended.dispatches, live.dispatches, 0) as dispatches,
      coalesce(ended.lost_leases, live.lost_leases, 0)::int as lost_leases,
      case when ended.state is distinct from 'complete' then coalesce(live.error_code, failure.error_code) end
        as error_code,
      nullif(lane.circuit, '') as circuit,
      blocker.names as blocked_by,
      coalesce(live.started_at, ended.started_at, failure.started_at) as last_started_at,
      coalesce(ended.epoch, live.epoch, 1) as epoch
    from chosen
    join lane on lane.lane_id = chosen.lane_id
    left join live on live.step_no = chosen.step_no
    left join ended on ended.step_no = chosen.step_no
    left join failure on failure.step_no = chosen.step_no and failure.epoch = coalesce(ended.epoch, live.epoch)
    left join arrival on arrival.step_no = chosen.step_no
    left join blocker on blocker.step_no = chosen.step_no
  ) as shown
  order by 1
$$;
comment on function step_readiness_at(bigint[], bigint[], timestamptz) is
  'The readiness rule at an instant (NULL: now), for the steps of several tasks. get_step_readiness_status shows it.';

create or replace function get_step_readiness_status(task_id bigint, step_ids bigint[] default null)
returns setof step_readiness
language sql stable security definer set search_path from current
as $$
  select readiness.*
  from step_readiness_at(array[get_step_readiness_status.task_id], get_step_readiness_status.step_ids, now()) as readiness
$$;
comment on function get_step_readiness_status(bigint, bigint[]) is
'The steps of a task, by number: state, and whether and when each may run. step_ids chooses which rows come back and never
changes their values. An unknown task gives no rows. One snapshot. The columns (also: \d+ step_readiness):
  workflow_step_id         the step''s id: task_id plus its number
  task_id                  the task''s id
  name                     unique in the task
  current_state            pending, in_progress, complete, error, cancelled, resolved_manually
  dependencies_satisfied   every parent is complete or resolved_manually
  retry_eligible           pending or error, not failed for good, next_retry_at NULL or past
  ready_for_execution      would be granted to the next worker with room
  last_failure_at          time of the last failure since the last reset
  next_retry_at            earliest next run of a failed step; NULL: never failed, failed for good, running or ended
  total_parents            how many steps it depends on
  completed_parents        how many of them are complete or resolved_manually
  attempts                 concluded runs that count, since the last reset
  retry_limit              how many runs it may have, the first included
  backoff_request_seconds  delay asked for by the failing service; last_attempted_at plus this is next_retry_at
  last_attempted_at        when the last run was concluded
  dispatches               leases ever granted
  lost_leases              leases that ended without a result, since the last reset
  error_code               of the last failure, or why it failed for good
  circuit                  the circuit it belongs to, if any
  blocked_by               names of what it waits for: failed ancestors, then unfinished parents; at most 32
  last_started_at          when the last run started
  epoch                    rises at each reset';

create or replace function get_step_readiness_status_batch(task_ids bigint[])
returns setof step_readiness
language sql stable security definer set search_path from current
as $$
  select readiness.* from step_readiness_at(get_step_readiness_status_batch.task_ids, null, now()) as readiness
$$;
comment on function get_step_readiness_status_batch(bigint[]) is
  'get_step_readiness_status for several tasks, by task and step number, in one snapshot. The same columns.';
