-- Readiness: a plain join of one task's rows. It reads the very rows a claim takes, so it cannot disagree with one.

-- steps_of_task_at is the rule; its argument "at" is the instant it is asked for (NULL: now), so that a test may ask
-- about any instant. A task that does not exist gives no row.
--
-- Everything is looked up by key, one step at a time: a join of sets would be planned for the few rows that an unanalyzed
-- partition promises, and take seconds for a task of 10,000 steps. The functions that show it have settings that leave one possible plan. This one
-- has none, so that it is inlined into the statement that calls it, whose plan a server keeps.
create or replace function steps_of_task_at(of_task bigint, step_ids bigint[], at timestamptz)
returns setof step_readiness
language sql stable
as $$
  select
    of_task + step.step_no,
    of_task,
    step.name,
    shown.current_state,
    arrival.completed_parents = shown.total_parents,
    shown.current_state in ('pending', 'error') and parked.step_no is null
      and (shown.next_retry_at is null or coalesce(at, now()) >= shown.next_retry_at),
    gate.is_runnable and not paused.is_so and gate.admits,
    failure.ended_at,
    shown.next_retry_at,
    shown.total_parents,
    arrival.completed_parents,
    shown.attempts,
    step.retry_limit,
    -- a success clears the delay and the code
    case when ended.state is distinct from 'complete' then extract(epoch from failure.backoff_request) end,
    -- an ending without a token is an operator's, not a run's
    case when ended.state = 'complete' and ended.token is not null then ended.ended_at else failure.ended_at end,
    shown.dispatches,
    shown.lost_leases,
    case when ended.state is distinct from 'complete' then coalesce(parked.error_code, failure.error_code) end,
    nullif(lane.circuit, ''),
    -- What stands in a blocked step's way: failed ancestors first, then unfinished parents. A scalar subquery, since a join
    -- would be memoized, with the whole map in the key.
    case when shown.is_blocked then (
      select array_agg(named.name order by obstacle.is_failed desc, obstacle.step_no)
      from (
        select origin::int as step_no, true as is_failed
        from jsonb_array_elements(graph.failed_ancestors -> step.step_no::text) as traced (origin)
        union
        select parent.step_no,
          (select p.step_no from parked p where p.task_id = of_task and p.step_no = parent.step_no limit 1) is not null
        from unnest(step.parents) as parent (step_no)
        where (select e.step_no from step_end e where e.task_id = of_task and e.step_no = parent.step_no limit 1) is null
        order by is_failed desc, step_no
        limit 32
      ) as obstacle
      cross join lateral (
        select s.name from step s where s.task_id = of_task and s.step_no = obstacle.step_no limit 1
      ) as named
    ) end,
    coalesce(lease.started_at, ended.started_at, failure.started_at),
    shown.epoch,
    case
      when shown.current_state not in ('pending', 'error') then null
      when parked.step_no is not null then 'operator'
      when shown.is_blocked then 'dependencies'
      when not gate.is_runnable then case when backoff.failures > 0 then 'backoff' else 'not_before' end
      when paused.is_so then 'paused'
      when not gate.admits then circuit_word(lane.circuit_id, at)
      when (
        select w.session_id from worker_session w
        where w.namespace_id = lane.namespace_id and lane.handler = any (w.handlers) and w.closed_at is null and w.drained_at is null
          -- store.SessionLiveFor
          and greatest(w.seen_at, (select r.seen_at from replica r where r.replica_id = w.replica_id)) > now() - interval '15 seconds'
        limit 1
      ) is null then 'worker'
      else 'capacity'
    end,
    case when shown.current_state not in ('pending', 'error') then null
      when not gate.is_runnable then backoff.due_at
      when paused.is_so then paused.until
      when not gate.admits then circuit_until(lane.circuit_id, at)
    end
  from (
    -- For each step below a step that failed for good: the numbers of those that did. No step below a failed one can fail
    -- too, so tracing each costs at most the task's edges.
    with recursive
    failed as (
      select step_no from parked where parked.task_id = of_task order by step_no limit 32
    ),
    downstream (origin, step_no) as (
      select step_no, step_no from failed
      union
      select downstream.origin, child.step_no
      from downstream
      cross join lateral (
        select s.children, s.join_children
        from step s
        where s.task_id = of_task and s.step_no = downstream.step_no
        limit 1
      ) as parent
      cross join lateral unnest(parent.children || parent.join_children) as child (step_no)
      where child.step_no < 2147483647
    )
    select jsonb_object_agg(traced.step_no, traced.origins) as failed_ancestors
    from (select step_no, jsonb_agg(origin) as origins from downstream group by step_no) as traced
  ) as graph
  join step on step.task_id = of_task and (step_ids is null or step.step_no = any (
    array(select (id - of_task)::int from unnest(step_ids) as given (id) where id - of_task between 1 and 10000)))
  cross join lateral (
    select l.lane_id, l.namespace_id, l.handler, l.circuit, l.circuit_id from lane l where l.lane_id = step.lane_id limit 1
  ) as lane
  -- Every unfinished, unblocked step stands in exactly one of these four; an ended one in step_end.
  left join lateral (
    select r.step_no, r.attempts, r.failures, r.dispatches, r.lost_leases, r.epoch
    from ready r
    where r.task_id = of_task and r.step_no = step.step_no
    limit 1
  ) as ready on true
  left join lateral (
    select b.step_no, b.attempts, b.failures, b.dispatches, b.lost_leases, b.epoch, b.due_at
    from backoff b
    where b.task_id = of_task and b.step_no = step.step_no
    limit 1
  ) as backoff on true
  left join lateral (
    select l.step_no, l.attempts, l.dispatches, l.lost_leases, l.epoch, coalesce(l.confirmed_at, l.granted_at) as started_at
    from lease l
    where l.task_id = of_task and l.step_no = step.step_no
    limit 1
  ) as lease on true
  left join lateral (
    select p.step_no, p.attempts, p.dispatches, p.lost_leases, p.epoch, p.error_code
    from parked p
    where p.task_id = of_task and p.step_no = step.step_no
    limit 1
  ) as parked on true
  left join lateral (
    select e.state, e.attempts, e.dispatches, e.lost_leases, e.epoch, e.token, e.started_at, e.ended_at
    from step_end e
    where e.task_id = of_task and e.step_no = step.step_no
    limit 1
  ) as ended on true
  left join lateral (
    select f.ended_at, f.started_at, f.next_retry_at, f.backoff_request, f.error_code
    from step_failure f
    where f.task_id = of_task and f.step_no = step.step_no and f.outcome <> 'lost_lease'
      and f.epoch = coalesce(ended.epoch, ready.epoch, backoff.epoch, lease.epoch, parked.epoch)
    order by f.dispatch desc
    limit 1
  ) as failure on true
  cross join lateral (
    select count(e.state)::int as completed_parents
    from unnest(step.parents) as parent (step_no)
    cross join lateral (
      select pe.state
      from step_end pe
      where pe.task_id = of_task and pe.step_no = parent.step_no and pe.state <> 'cancelled'
      limit 1
    ) as e
  ) as arrival
  cross join lateral (
    select
      case
        when ended.state is not null then ended.state::text
        when lease.step_no is not null then 'in_progress'
        when parked.step_no is not null or coalesce(ready.failures, backoff.failures) > 0 then 'error'
        else 'pending'
      end as current_state,
      case when coalesce(ready.step_no, backoff.step_no) is not null then failure.next_retry_at end as next_retry_at,
      coalesce(cardinality(step.parents), 0) as total_parents,
      coalesce(ended.attempts, ready.attempts, backoff.attempts, lease.attempts, parked.attempts, 0) as attempts,
      coalesce(ended.dispatches, ready.dispatches, backoff.dispatches, lease.dispatches, parked.dispatches, 0) as dispatches,
      coalesce(ended.lost_leases, ready.lost_leases, backoff.lost_leases, lease.lost_leases, parked.lost_leases, 0)::int
        as lost_leases,
      coalesce(ended.epoch, ready.epoch, backoff.epoch, lease.epoch, parked.epoch, 1) as epoch,
      coalesce(ready.step_no, backoff.step_no, lease.step_no, parked.step_no) is null and ended.state is null as is_blocked
  ) as shown
  cross join lateral (
    select runnable.is_runnable,
      lane.circuit_id is null or runnable.is_runnable and circuit_admits(lane.circuit_id, lane.lane_id, of_task, step.step_no, at)
        as admits
    from (select ready.step_no is not null or coalesce(backoff.due_at <= coalesce(at, now()), false) as is_runnable offset 0) as runnable
    offset 0                                   -- asked once a step
  ) as gate
  -- Both pauses must end: the later end counts, and one that nobody knows is the latest.
  cross join lateral (
    select count(*) > 0 as is_so, case when count(*) = count(p.until) then max(p.until) end as until
    from pauses_over(lane.namespace_id, lane.handler, at) as p
  ) as paused
  order by 1
$$;
comment on function steps_of_task_at(bigint, bigint[], timestamptz) is
  'The readiness rule at an instant (NULL: now), for the steps of a task. get_step_readiness_status shows it.';

create or replace function step_readiness_at(task_ids bigint[], step_ids bigint[], at timestamptz)
returns setof step_readiness
language sql stable
as $$
  select readiness.*
  from (select distinct id from unnest(task_ids) as given (id)) as wanted
  cross join lateral steps_of_task_at(wanted.id, step_ids, at) as readiness
  order by readiness.workflow_step_id
$$;
comment on function step_readiness_at(bigint[], bigint[], timestamptz) is
  'steps_of_task_at for several tasks, each counted once.';

create or replace function get_step_readiness_status(task_id bigint, step_ids bigint[] default null)
returns setof step_readiness
language sql stable security definer
set search_path from current set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
  select readiness.*
  from steps_of_task_at(get_step_readiness_status.task_id, get_step_readiness_status.step_ids, now()) as readiness
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
  epoch                    rises at each reset
  waiting_for              why it is not running: dependencies, backoff, not_before, paused, circuit, limit, worker, capacity
                           or operator; NULL: it runs or has ended
  waiting_until            when that ends by itself, at the earliest; NULL: not known';

create or replace function get_step_readiness_status_batch(task_ids bigint[])
returns setof step_readiness
language sql stable security definer
set search_path from current set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
  select readiness.* from step_readiness_at(get_step_readiness_status_batch.task_ids, null, now()) as readiness
$$;
comment on function get_step_readiness_status_batch(bigint[]) is
  'get_step_readiness_status for several tasks, by task and step number, in one snapshot. The same columns.';
