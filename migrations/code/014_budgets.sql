-- Budgets of time: a task's deadline and a step's max_elapsed. They stand still while a circuit is open or held whose policy
-- says suspend_budgets: until then nothing of it is dispatched, so the time is not the task's to lose.

-- How long any of these circuits, each until its own instant, kept its steps back with suspend_budgets; counted from since.
create or replace function circuits_shut_for(of_circuits int[], untils timestamptz[], since timestamptz)
returns interval
language sql stable
as $$
  -- seconds only, never days: adding it to an instant means the same in every time zone
  select make_interval(secs => coalesce(sum(extract(epoch from upper(span) - lower(span))), 0)::float8)
  from (
    select range_agg(tstzrange(greatest(shut.began, since), least(shut.ended, asked.until))) as spans
    from unnest(of_circuits, untils) as asked (circuit_id, until)
    cross join lateral (
      -- what began or ended by itself did so then, whenever somebody took note of it
      select case when event.cause = 'hold' then least(event.recorded_at, event.hold_from) else event.recorded_at end as began,
        event.to_state, (event.policy).suspend_budgets as suspends,
        least(lead(event.recorded_at) over (order by event.generation),
          case event.to_state when 'open' then event.open_until when 'held' then event.hold_until end) as ended
      from circuit_event as event
      where event.circuit_id = asked.circuit_id
      union all
      -- a planned hold that has begun, and that nobody has taken note of yet
      select planned.hold_from, 'held', (circuit_policy_in_force(planned.policy, n.circuit_defaults)).suspend_budgets, planned.hold_until
      from circuit as planned
      cross join lateral (select namespace.circuit_defaults from namespace where namespace.namespace_id = planned.namespace_id limit 1) as n
      where planned.circuit_id = asked.circuit_id and planned.state <> 'held' and planned.hold_from < asked.until
    ) as shut
    where shut.to_state in ('open', 'held') and shut.suspends and shut.began < asked.until
      and coalesce(shut.ended, asked.until) > since
  ) as together
  cross join lateral unnest(together.spans) as span
$$;

-- When a task's deadline ends it: put off by the time for which a circuit was shut that a step of it names which had not ended.
-- NULL: never.
create or replace function deadline_end(of_task bigint, at timestamptz)
returns timestamptz
language sql stable
as $$
  select t.deadline + circuits_shut_for(named.circuit_ids, named.untils, t.created_at)
  from task t
  cross join lateral (
    select array_agg(circuit_id) as circuit_ids, array_agg(until) as untils
    from (
      select lane.circuit_id, max(coalesce(step_end.ended_at, at, now())) as until
      from step
      join lane on lane.lane_id = step.lane_id
      left join step_end on step_end.task_id = of_task and step_end.step_no = step.step_no
      where step.task_id = of_task and lane.circuit_id is not null
      group by lane.circuit_id
    ) as by_circuit
  ) as named
  where t.task_id = of_task and t.deadline is not null
$$;
comment on function deadline_end(bigint, timestamptz) is 'When a task''s deadline ends it, suspended budgets taken into account. NULL: never.';

-- When max_elapsed ends a step: put off by the time for which its circuit was shut. NULL: never.
create or replace function elapsed_end(of_task bigint, of_step int, first_started_at timestamptz, at timestamptz)
returns timestamptz
language sql stable
as $$
  select first_started_at + s.max_elapsed + circuits_shut_for(array[lane.circuit_id], array[coalesce(at, now())], first_started_at)
  from step s
  join lane on lane.lane_id = s.lane_id
  where s.task_id = of_task and s.step_no = of_step and s.max_elapsed is not null
$$;
comment on function elapsed_end(bigint, int, timestamptz, timestamptz) is 'When max_elapsed ends a step, suspended budgets taken into account. NULL: never.';
